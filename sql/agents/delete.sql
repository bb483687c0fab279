-- sql/agents/delete.sql
-- Deletes a live agent softly. Its threads stay as they are. Not one that is none of these versions.
-- returns: count
-- uses: agents_user_id_id_key
update agents
set deleted_at = now()
where id = :id
    and user_id = :user_id
    and deleted_at is null
    and (:versions::timestamptz[] is null or updated_at = any(:versions));
