explain (analyze, buffers, timing off, format json)
