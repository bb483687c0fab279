-- Drops every subscription.
drop table user_subscriptions;
