-- PostgreSQL lets whoever may connect make temporary tables. No statement needs one, and they are room to work in for
-- whoever should get hold of a role: names that come before ours, and as much of the disk as there is. Nor may anybody
-- make anything in our schema, which until PostgreSQL 15 was everybody's, and stays so in a database that was upgraded.
--
-- The database and the schema may be another's. That keeps nobody from migrating: the warnings are for the DBA.
do $$
begin
    execute format('revoke temporary on database %I from public', current_database());
exception
    when insufficient_privilege then
        raise warning 'everybody may make temporary tables until its owner runs: revoke temporary on database % from %',
            quote_ident(current_database()), 'public';
end
$$;

do $$
begin
    revoke create on schema public from public;
exception
    when insufficient_privilege then
        raise warning 'see that its owner runs: revoke create on schema public from public';
end
$$;
