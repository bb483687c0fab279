-- sql/usage/months.sql
-- The months that the daily sums have, oldest first, each as its first day.
-- returns: many date
-- role: crafely_backup
-- across users: because the months are those of everybody
-- scans: usage_daily, because they are few next to the usage that is reconciled with them month by month
select distinct date_trunc('month', day)::date as month
from usage_daily
order by month;
