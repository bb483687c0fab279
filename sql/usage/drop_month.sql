-- sql/usage/drop_month.sql
-- Housekeeping: drops the records of a month, given by its first day, and keeps their daily sums. Gives whether there
-- was such a month. Gives up at once where others are at work on usage for long.
-- returns: one bool
-- role: crafely_admin
-- not null: is_dropped
select drop_usage_month(:month) as is_dropped;
