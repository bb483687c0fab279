-- Everybody may make temporary tables again, as PostgreSQL has it. Our schema stays as PostgreSQL 15 and later have it.
do $$
begin
    execute format('grant temporary on database %I to public', current_database());
exception
    when insufficient_privilege then null;
end
$$;
