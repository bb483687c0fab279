-- More keys than anybody ever rotates through; all but the last are retired.
insert into encryption_keys (id, check_value, created_at, retired_at)
select
    'key-' || n,
    'crafely:1:key-' || n || ':' || md5('check ' || n),
    date_trunc('month', now(), 'utc') - (1000 - n) * interval '30 days',
    case when n < 1000 then date_trunc('month', now(), 'utc') - (999 - n) * interval '30 days' end
from generate_series(1, 1000) as n;
