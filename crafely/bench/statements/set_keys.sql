update crafely_bench.seed set keys = $1;
