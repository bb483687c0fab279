-- Which database this is, whatever it is called and wherever it is reached.
select concat(c.system_identifier, '.', d.oid) as source
from pg_control_system() as c
cross join pg_database as d
where d.datname = current_database();
