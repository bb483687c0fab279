-- Reads everything once, so that what was not asked for lately is as near as the rest: tables, then the index of keys.
set max_parallel_workers_per_gather = 0;

select (select count(*) from usage), (select count(*) from usage_daily), (select count(hashed_key) from api_keys);

set enable_seqscan = off;

select count(*)
from (
    select key_id
    from api_keys
    order by key_id
) as keys;
