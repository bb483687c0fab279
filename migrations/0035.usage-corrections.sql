-- A record may take back what was counted: one of less than nothing, on the day that it corrects. Usage is appended to
-- and never changed, so that a correction is seen, too. No record both counts and takes back.
--
-- The four checks that go are within the one that comes, so nothing that is there can break it; the next migration has
-- that read through.
-- What reads usage sums it, and counts on no sign.
-- squawk-ignore-file ban-drop-constraint
alter table usage
    drop constraint usage_tokens_in_check,
    drop constraint usage_tokens_out_check,
    drop constraint usage_tokens_total_check,
    drop constraint usage_cost_check,
    -- What is null is neither; where all are, so is the whole.
    add constraint usage_tokens_in_tokens_out_tokens_total_cost_check check (
        least(tokens_in, tokens_out, tokens_total, cost) >= 0
        or greatest(tokens_in, tokens_out, tokens_total, cost) <= 0
    ) not valid;
