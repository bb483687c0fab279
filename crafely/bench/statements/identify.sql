select set_config('crafely.user_id', $1, false);
