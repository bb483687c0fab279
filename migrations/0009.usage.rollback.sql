-- Drops all usage, with every month.
drop table usage;
