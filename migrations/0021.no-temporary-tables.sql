-- PostgreSQL lets whoever may connect make temporary tables. No statement needs one, and they are room to work in for
-- whoever should get hold of a role: names that come before ours, and as much of the disk as there is. Nor may anybody
-- make anything in our schema, which until PostgreSQL 15 was everybody's, and stays so in a database that was upgraded.
do $$
begin
    execute format('revoke temporary on database %I from public', current_database());
    revoke create on schema public from public;
exception
    -- The database and its schema may be another's. That keeps nobody from migrating: the warning is for the DBA.
    when insufficient_privilege then
        raise warning 'everybody may make temporary tables until the owner runs: revoke temporary on database % from public',
            current_database();
end
$$;
