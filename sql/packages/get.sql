-- sql/packages/get.sql
-- One package, sold or not.
-- returns: maybe Package
-- role: crafely_app, crafely_admin
-- reads: replica
-- uses: packages_pkey
select id, name, description, price, features, "interval", active, rate_limit, created_at, updated_at
from packages
where id = :id;
