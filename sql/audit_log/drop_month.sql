-- sql/audit_log/drop_month.sql
-- Housekeeping: drops the oldest month of the trail that is older than so many before the current one, and says so in
-- the chain of seals. Gives the month; none where there is none, or it is not sealed yet.
-- returns: maybe date
-- role: crafely_admin
select month
from drop_audit_month(:months_kept) as month
where month is not null;
