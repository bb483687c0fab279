-- sql/idempotency_keys/forget.sql
-- Housekeeping: forgets the oldest answers that are past their window, about so many at a time.
-- returns: count
-- role: crafely_admin
-- uses: idempotency_keys_created_at_idx
delete from idempotency_keys
where created_at < :older_than
    and created_at <= coalesce(
        (
            select created_at
            from idempotency_keys
            where created_at < :older_than
            order by created_at
            limit 1
            offset :take - 1
        ),
        :older_than
    );
