insert into packages (id, name, description, price, features, "interval", active, created_at, updated_at)
select
    s.id,
    s.name,
    s.description,
    s.price::numeric(12, 2),
    s.features,
    s."interval",
    s.active,
    s.created_at at time zone 'utc',
    s.updated_at at time zone 'utc'
from crafely_import.packages as s
where not exists (
    select
    from crafely_import.refused as r
    where r.table_name = 'Package'
        and r.id = s.id
);
