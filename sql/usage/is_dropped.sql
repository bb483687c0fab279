-- sql/usage/is_dropped.sql
-- Whether the records of a month, given by its first day, are gone. Their daily sums are not.
-- returns: one bool
-- role: crafely_app, crafely_backup
-- uses: usage_drops_pkey
select exists (
    select
    from usage_drops
    where month = :month
) as is_dropped;
