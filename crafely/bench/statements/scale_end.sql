-- The month as housekeeping would have made it.
alter table {aside} add primary key (id, created_at);
create index on {aside} (user_id, created_at desc, id desc);
create index on {aside} (api_key_id, created_at desc, id desc);
alter table {aside} enable row level security;
alter table {aside} force row level security;
alter table {aside} rename to {part};
alter table usage attach partition {part} for values from ({first}) to ({last});
