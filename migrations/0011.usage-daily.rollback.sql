-- Drops the sums; usage itself stays.
drop table usage_daily;
