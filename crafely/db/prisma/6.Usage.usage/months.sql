-- The months (UTC) of the rows that are looked at.
select distinct concat('usage', to_char(s.created_at, '_"y"YYYY"m"MM')) as name
from crafely_import.usage as s
where s.created_at between '0001-01-01' and '9998-12-31';
