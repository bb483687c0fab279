-- Packages, as the source has them.
select
    id,
    name,
    description,
    price::double precision as price,
    features,
    "interval",
    active,
    created_at at time zone 'utc' as created_at,
    updated_at at time zone 'utc' as updated_at
from packages
