-- sql/threads/delete.sql
-- Deletes a live thread softly.
-- returns: count
-- uses: threads_pkey
update threads
set deleted_at = now()
where id = :id
    and user_id = :user_id
    and deleted_at is null;
