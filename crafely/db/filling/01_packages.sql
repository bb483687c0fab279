-- More packages than anybody sells, so that their indexes are worth a planner's while.
insert into packages (id, name, description, price, features, "interval", active, created_at)
select
    'pkg_' || md5('package ' || n)::uuid,
    'package ' || n,
    case when n % 4 > 0 then repeat('What it holds. ', 5 + n % 20) end,
    n % 200 + 0.99,
    array['feature ' || n % 10, 'feature ' || n % 17, 'feature ' || n % 23],
    case when n % 3 = 0 then 'year' else 'month' end,
    n % 5 > 0,
    date_trunc('month', now(), 'utc') - n * interval '17 hours'
from generate_series(1, 2000) as n;
