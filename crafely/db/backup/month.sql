-- Whether the records of usage of the month from $1 to $2 (excluded) were dropped, and how many its daily sums have.
select
    exists (
        select
        from usage_drops
        where month = $1::date
    ) as is_dropped,
    (
        select coalesce(sum(records), 0)::bigint
        from usage_daily
        where day >= $1::date
            and day < $2::date
    ) as records;
