-- sql/usage/expired_month.sql
-- Housekeeping: the oldest month of records, by its first day, that is older than so many before the current one. Rows
-- in the default partition belong to no month, and stay.
-- returns: maybe date
-- role: crafely_admin
select to_date(right(c.relname, 8), '"y"YYYY"m"MM') as month
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'usage'::regclass
    and c.relname ~ '^usage_y\d{4}m\d\d$'
    and to_date(right(c.relname, 8), '"y"YYYY"m"MM')
        < date_trunc('month', now() at time zone 'utc') - make_interval(months => :months_kept)
order by month
limit 1;
