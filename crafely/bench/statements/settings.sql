-- What a figure depends on.
select name, current_setting(name)
from pg_settings
where name = any(array[
    'server_version', 'shared_buffers', 'effective_cache_size', 'work_mem', 'fsync', 'synchronous_commit',
    'full_page_writes', 'wal_level', 'max_wal_size', 'checkpoint_timeout', 'random_page_cost', 'jit', 'io_method',
    'max_connections', 'shared_preload_libraries', 'track_io_timing', 'huge_pages', 'data_checksums'
])
order by name;
