-- As it was between the two: what comes is checked, and what is there is not known to have been.
alter table usage
    drop constraint usage_tokens_in_tokens_out_tokens_total_cost_check,
    add constraint usage_tokens_in_tokens_out_tokens_total_cost_check check (
        least(tokens_in, tokens_out, tokens_total, cost) >= 0
        or greatest(tokens_in, tokens_out, tokens_total, cost) <= 0
    ) not valid;
