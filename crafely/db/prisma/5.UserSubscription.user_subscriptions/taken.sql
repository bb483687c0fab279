-- Subscriptions, as the source has them.
select
    id,
    status,
    start_date at time zone 'utc' as start_date,
    end_date at time zone 'utc' as end_date,
    created_at at time zone 'utc' as created_at,
    updated_at at time zone 'utc' as updated_at,
    user_id,
    package_id
from user_subscriptions
