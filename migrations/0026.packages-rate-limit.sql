-- What a package allows in requests a minute: to all keys and sessions of its subscriber together, and to a key for
-- which neither its owner nor the settings say anything else. It is read for a user once a minute and not with every
-- lookup of a key: joined to that it would take twice as long, and a copy in each key's row would be late where a
-- subscription begins or ends by the clock.
alter table packages add column rate_limit integer;

-- Packages are few, and no row has a value yet.
-- squawk-ignore constraint-missing-not-valid
alter table packages add constraint packages_rate_limit_check check (rate_limit > 0);

comment on column packages.rate_limit is 'Requests a minute; null means that the package says nothing of it.';

grant insert (rate_limit), update (rate_limit) on packages to crafely_admin;

-- Limits are looked up for any user, before anything is done in his name.
create policy user_subscriptions_lookup on user_subscriptions
    for select
    to crafely_auth
    using (true);

grant select (user_id, package_id, status, start_date, end_date) on user_subscriptions to crafely_auth;
grant select (id, rate_limit) on packages to crafely_auth;
