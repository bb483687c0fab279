-- Forgets which requests have been answered: who sends one again has it done again.
drop table idempotency_keys;
