-- sql/user_subscriptions/list_for_user.sql
-- The user's subscriptions, whatever their status, newest first, from a position on.
-- returns: many UserSubscription
-- reads: replica
-- uses: user_subscriptions_user_id_created_at_id_idx
select id, status, start_date, end_date, user_id, package_id, created_at, updated_at
from user_subscriptions
where user_id = :user_id
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
