-- Drops every agent.
drop table agents;
