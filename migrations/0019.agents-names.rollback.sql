-- As 0004.agents made it.
create index concurrently agents_user_id_lower_name_idx on agents (user_id, (lower(name) collate "C"))
    where deleted_at is null;
