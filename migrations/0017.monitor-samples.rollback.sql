-- Forgets how tables and indexes have grown.
drop function statement_statistics();
drop function relation_bytes(oid);
drop table monitor_samples;
