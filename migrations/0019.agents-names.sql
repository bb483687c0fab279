-- transactional: false
-- No statement of a user can use this index: row-level security lets only what gives nothing away be compared before
-- its own condition, and lower() is not among that. Names are looked for among one user's live agents, newest first,
-- which the index of the list finds as they come; this one only cost every write of an agent.
drop index concurrently agents_user_id_lower_name_idx;
