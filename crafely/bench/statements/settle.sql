-- What a table looks like some time after it was filled: hint bits and the visibility map are set, and there are
-- statistics.
vacuum (analyze) {table};
