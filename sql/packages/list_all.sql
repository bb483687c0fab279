-- sql/packages/list_all.sql
-- Packages, newest first, from a position on; only those that are sold (or are not), or all.
-- returns: many Package
-- role: crafely_app, crafely_admin
-- reads: replica
-- uses: packages_created_at_id_idx
select id, name, description, price, features, "interval", active, rate_limit, created_at, updated_at
from packages
where (:active::boolean is null or active = :active)
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
