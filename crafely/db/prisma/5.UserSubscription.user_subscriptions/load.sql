insert into user_subscriptions (id, status, start_date, end_date, created_at, updated_at, user_id, package_id)
select
    s.id,
    s.status,
    s.start_date at time zone 'utc',
    s.end_date at time zone 'utc',
    s.created_at at time zone 'utc',
    s.updated_at at time zone 'utc',
    s.user_id,
    s.package_id
from crafely_import.user_subscriptions as s
where not exists (
    select
    from crafely_import.refused as r
    where r.table_name = 'UserSubscription'
        and r.id = s.id
);
