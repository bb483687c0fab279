-- Keys come in no order: an index made when all are there takes seconds, one that grows with them takes minutes.
alter table api_keys drop constraint if exists api_keys_key_id_key;
