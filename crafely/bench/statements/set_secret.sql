insert into crafely_bench.seed (secret, hashed_key) values ($1, $2);
