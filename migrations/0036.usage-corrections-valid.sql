-- depends: 0035.usage-corrections
-- Reads through all of usage, and blocks nobody who writes to it.
alter table usage validate constraint usage_tokens_in_tokens_out_tokens_total_cost_check;
