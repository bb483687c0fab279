-- sql/threads/delete.sql
-- Deletes a live thread softly. Not one that is none of these versions.
-- returns: count
-- uses: threads_pkey
update threads
set deleted_at = now()
where id = :id
    and user_id = :user_id
    and deleted_at is null
    and (:versions::timestamptz[] is null or updated_at = any(:versions));
