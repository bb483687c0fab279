-- A century of months that went: no table will have as many, but a planner is to believe that this one grows.
insert into usage_drops (month)
select '1900-01-01'::date + n * interval '1 month'
from generate_series(0, 1199) as n;
