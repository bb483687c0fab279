-- What a handler does that knows nothing better.
insert into usage (
    user_id, api_key_id, event_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency
) values (
    %(user_id)s, %(api_key_id)s, %(event_id)s, %(provider)s, %(model)s, %(type)s, %(tokens_in)s, %(tokens_out)s,
    %(tokens_total)s, %(cost)s, %(currency)s
);
