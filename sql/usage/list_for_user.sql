-- sql/usage/list_for_user.sql
-- The user's usage since a time, newest first, from a position on; of a provider, model or type, or all.
-- returns: many Usage
-- reads: replica
-- uses: usage_user_id_created_at_id_idx
select
    id, api_key_id, event_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency, metadata,
    created_at
from usage
where user_id = :user_id
    and created_at >= :from_time
    -- Says nothing that the next line does not, but months are left out by it.
    and created_at <= :before
    and (created_at, id) < (:before, :before_id)
    and (:provider::text is null or provider = :provider)
    and (:model::text is null or model = :model)
    and (:type::text is null or type = :type)
order by created_at desc, id desc
limit :take
offset :skip;
