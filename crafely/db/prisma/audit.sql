-- The trail says of an import one line a table: how many rows, and their checksum. A million lines with what every key
-- was when it came would say no more, and cost as much as the import.
insert into audit_log (actor_role, request_id, table_name, action, new)
values (
    session_user,
    'crafely import prisma',
    $1,
    'insert',
    jsonb_build_object('imported_rows', $2::bigint, 'checksum', $3::text)
);
