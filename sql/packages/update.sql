-- sql/packages/update.sql
-- Changes what :changes names, a JSON object of columns; what it does not name stays. No row where it is
-- none of these versions.
-- returns: maybe Package
-- role: crafely_admin
-- uses: packages_pkey
update packages p
set (name, description, price, features, "interval", active, rate_limit) = (
    -- The row itself is the base: a column that :changes does not name keeps its value.
    select c.name, c.description, c.price, c.features, c."interval", c.active, c.rate_limit
    from jsonb_populate_record(p, :changes::jsonb) as c
)
where id = :id
    and (:versions::timestamptz[] is null or updated_at = any(:versions))
returning id, name, description, price, features, "interval", active, rate_limit, created_at, updated_at;
