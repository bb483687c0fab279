-- Seeding is not an event that anybody audits, and its rows refer to each other rightly by construction: triggers,
-- which are also what checks foreign keys, rest in this session. Nor does each chunk wait for the disk.
set session_replication_role = replica;
set synchronous_commit = off;
