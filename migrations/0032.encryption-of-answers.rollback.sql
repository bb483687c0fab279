-- «keys reencrypt» no longer sees which keys the answers need that are kept for idempotency keys.
revoke select (body) on idempotency_keys from crafely_encryption;
drop policy idempotency_keys_encryption on idempotency_keys;
