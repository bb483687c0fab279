insert into crafely_import.refused (table_name, id, column_name, rule)
select 'UserSubscription', s.id, r.column_name, r.rule
from crafely_import.user_subscriptions as s
left join packages as p on p.id = s.package_id
cross join lateral (
    values
    ('id', 'expected 1 to 255 characters', s.id = ''),
    ('status', 'expected active, cancelled or expired', s.status not in ('active', 'cancelled', 'expired')),
    ('status', 'a newer subscription of this user to this package is active, too', s.is_superseded),
    ('endDate', 'expected no time before startDate', s.end_date < s.start_date),
    ('userId', 'expected a user id, not an empty text', s.user_id = ''),
    ('packageId', 'expected a package that was taken', p.id is null),
    ('startDate', 'expected a time in the years 1 to 9999', s.start_date not between '0001-01-01' and '9999-12-31'),
    ('endDate', 'expected a time in the years 1 to 9999', s.end_date not between '0001-01-01' and '9999-12-31'),
    ('createdAt', 'expected a time in the years 1 to 9999', s.created_at not between '0001-01-01' and '9999-12-31'),
    ('updatedAt', 'expected a time in the years 1 to 9999', s.updated_at not between '0001-01-01' and '9999-12-31')
) as r (column_name, rule, is_broken)
where r.is_broken;
