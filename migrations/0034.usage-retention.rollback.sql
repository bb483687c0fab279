-- Forgets which months of usage were dropped: reconciling then takes them for a loss. The months do not come back.
drop function drop_usage_month(date);
drop table usage_drops;
