-- What the database has had of the migrations, in order.
select
    migration_id,
    migration_hash
from _yoyo_migration
order by migration_id;
