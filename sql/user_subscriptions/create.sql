-- sql/user_subscriptions/create.sql
-- Subscribes a user to a package that is sold. No row: there is no such package.
-- returns: maybe UserSubscription
-- role: crafely_app, crafely_admin
-- uses: packages_pkey
insert into user_subscriptions (start_date, end_date, user_id, package_id)
select coalesce(:start_date::timestamptz, now()), :end_date::timestamptz, :user_id, id
from packages
where id = :package_id
    and active
returning id, status, start_date, end_date, user_id, package_id, created_at, updated_at;
