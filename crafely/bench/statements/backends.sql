-- Who serves the connections to this database, but for this one and those of a name.
select pid
from pg_stat_activity
where datname = current_database()
    and backend_type = 'client backend'
    and pid <> pg_backend_pid()
    and application_name <> $1;
