-- Answers that are kept for idempotency keys are sealed as texts are, and live for a day. They are not sealed anew, so
-- a key is needed until the last of them is forgotten: «keys reencrypt» counts them, and says so.
create policy idempotency_keys_encryption on idempotency_keys
    for select
    to crafely_encryption
    using (true);

grant select (body) on idempotency_keys to crafely_encryption;
