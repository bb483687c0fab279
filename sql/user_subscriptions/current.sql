-- sql/user_subscriptions/current.sql
-- What the user has now: the active subscriptions, and every feature of their packages once. An end that has come
-- counts at once, whether or not housekeeping has applied it.
-- returns: one CurrentSubscriptions
-- reads: replica
-- uses: user_subscriptions_user_id_package_id_idx, packages_pkey
with current_packages as (
    select s.id, s.package_id, s.start_date, s.end_date, p.name, p.features
    from user_subscriptions s
    join packages p on p.id = s.package_id
    where s.user_id = :user_id
        and s.status = 'active'
        and s.start_date <= now()
        and (s.end_date is null or s.end_date > now())
)
select
    array(
        select distinct feature
        from current_packages
        cross join unnest(features) as feature
        order by feature
    ) as features,
    coalesce((
        select jsonb_agg(
            jsonb_build_object(
                'id', id,
                'packageId', package_id,
                'packageName', name,
                'startDate', start_date,
                'endDate', end_date
            )
            order by start_date desc, id desc
        )
        from current_packages
    ), '[]') as subscriptions;
