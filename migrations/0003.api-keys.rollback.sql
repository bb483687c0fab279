-- Drops every API key.
drop table api_keys;
