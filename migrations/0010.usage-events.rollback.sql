-- Forgets which events were counted.
drop table usage_events;
