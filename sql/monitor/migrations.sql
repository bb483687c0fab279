-- sql/monitor/migrations.sql
-- The migrations that this database has had, with the checksum of what was applied.
-- returns: many AppliedMigration
-- role: crafely_admin
-- scans: _yoyo_migration, because it has one row a migration
-- not null: migration_id
select migration_id, migration_hash
from _yoyo_migration
order by migration_id;
