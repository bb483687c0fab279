update crafely_bench.seed set usage_records = $1;
