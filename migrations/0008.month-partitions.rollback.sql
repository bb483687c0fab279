-- Nothing leans on it any more once the partitioned tables are gone.
drop function ensure_month_partitions(regclass, integer);
