-- The roles that statements run as. None can log in, none is a superuser, none bypasses row-level security: a login
-- of the DBA's choice is granted them and takes one on at connection time, so a leaked statement can do no more than
-- its role. Roles belong to the whole server, so another database may have made them already.
do $$
declare
    name text;
begin
    foreach name in array array[
        'crafely_app',      -- a user's own rows, by row-level security
        'crafely_auth',     -- looks keys up, for any user
        'crafely_meter',    -- records usage, for any user
        'crafely_admin',    -- packages, subscriptions, audit trail, housekeeping
        'crafely_monitor',  -- statistics, no tenant's data
        'crafely_backup'    -- reads everything, writes nothing
    ] loop
        if not exists (select from pg_roles where rolname = name) then
            begin
                execute format('create role %I nologin noinherit nosuperuser nobypassrls', name);
            exception
                -- Another database of this server made it in the same moment.
                when duplicate_object or unique_violation then null;
            end;
        end if;
    end loop;
end
$$;

-- With one login for migrations and application, that login must be able to take the roles on. A superuser can anyway.
do $$
begin
    if not (select rolsuper from pg_roles where rolname = current_user) then
        grant crafely_app, crafely_auth, crafely_meter, crafely_admin, crafely_monitor, crafely_backup to current_user;
    end if;
exception
    -- Another login made the roles, for another database. It can grant them; to migrate they are not needed.
    when insufficient_privilege then
        raise warning 'to serve as %, grant it crafely_app, crafely_auth, crafely_meter and crafely_admin',
            current_user;
end
$$;

-- The statistics views show other sessions' statements only to members of pg_monitor. Where the migrating login may
-- not grant it, everything else still works: the warning is for the DBA.
do $$
begin
    grant pg_monitor to crafely_monitor;
exception
    when insufficient_privilege then
        raise warning 'crafely_monitor sees little until a superuser runs: grant pg_monitor to crafely_monitor';
end
$$;

grant usage on schema public
    to crafely_app, crafely_auth, crafely_meter, crafely_admin, crafely_monitor, crafely_backup;
