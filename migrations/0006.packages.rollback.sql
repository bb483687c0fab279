-- Drops every package.
drop table packages;
