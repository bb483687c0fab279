-- Drops every thread.
drop table threads;
