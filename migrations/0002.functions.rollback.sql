-- Nothing leans on these any more once the tables are gone.
drop function set_updated_at();
drop function current_user_id();
