-- As migrations/0003.api-keys.sql has it. A run that was interrupted may have left it out.
do $$
begin
    if not exists (
        select
        from pg_constraint
        where conrelid = 'api_keys'::regclass
            and conname = 'api_keys_key_id_key'
    ) then
        alter table api_keys add constraint api_keys_key_id_key unique (key_id);
    end if;
end
$$;
