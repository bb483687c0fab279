select count(*), coalesce((select sum(records) from usage_daily), 0) from usage;
