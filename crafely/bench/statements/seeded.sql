select secret, hashed_key, keys, usage_records, usage_until from crafely_bench.seed;
