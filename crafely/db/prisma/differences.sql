-- Where a source is not as the models of the Node application make it: what is missing or of another type, and columns
-- that Crafely knows nothing of («is_more»). Asked in the source, in the schema that its search_path names.
with expected (table_name, column_name, type, is_null) as (
    values
    ('ApiKey', 'id', 'character varying(255)', false),
    ('ApiKey', 'keyId', 'text', false),
    ('ApiKey', 'hashedKey', 'text', false),
    ('ApiKey', 'name', 'text', true),
    ('ApiKey', 'prefix', 'text', true),
    ('ApiKey', 'permissions', 'text[]', true),
    ('ApiKey', 'active', 'boolean', false),
    ('ApiKey', 'createdAt', 'timestamp(3) without time zone', false),
    ('ApiKey', 'updatedAt', 'timestamp(3) without time zone', false),
    ('ApiKey', 'lastUsedAt', 'timestamp(3) without time zone', true),
    ('ApiKey', 'userId', 'text', false),
    ('Agent', 'id', 'character varying(255)', false),
    ('Agent', 'name', 'text', false),
    ('Agent', 'instructions', 'text', false),
    ('Agent', 'tools', 'text', true),
    ('Agent', 'context', 'text', true),
    ('Agent', 'createdAt', 'timestamp(3) without time zone', false),
    ('Agent', 'updatedAt', 'timestamp(3) without time zone', false),
    ('Agent', 'deletedAt', 'timestamp(3) without time zone', true),
    ('Agent', 'userId', 'text', false),
    ('Thread', 'id', 'character varying(255)', false),
    ('Thread', 'name', 'text', false),
    ('Thread', 'storageId', 'text', true),
    ('Thread', 'instructions', 'text', true),
    ('Thread', 'model', 'text', true),
    ('Thread', 'createdAt', 'timestamp(3) without time zone', false),
    ('Thread', 'updatedAt', 'timestamp(3) without time zone', false),
    ('Thread', 'deletedAt', 'timestamp(3) without time zone', true),
    ('Thread', 'userId', 'text', false),
    ('Thread', 'agentId', 'character varying(255)', true),
    ('Package', 'id', 'character varying(255)', false),
    ('Package', 'name', 'text', false),
    ('Package', 'description', 'text', true),
    ('Package', 'price', 'double precision', false),
    ('Package', 'features', 'text[]', true),
    ('Package', 'interval', 'text', false),
    ('Package', 'active', 'boolean', false),
    ('Package', 'createdAt', 'timestamp(3) without time zone', false),
    ('Package', 'updatedAt', 'timestamp(3) without time zone', false),
    ('UserSubscription', 'id', 'character varying(255)', false),
    ('UserSubscription', 'status', 'text', false),
    ('UserSubscription', 'startDate', 'timestamp(3) without time zone', false),
    ('UserSubscription', 'endDate', 'timestamp(3) without time zone', true),
    ('UserSubscription', 'createdAt', 'timestamp(3) without time zone', false),
    ('UserSubscription', 'updatedAt', 'timestamp(3) without time zone', false),
    ('UserSubscription', 'userId', 'text', false),
    ('UserSubscription', 'packageId', 'character varying(255)', false),
    ('Usage', 'id', 'character varying(255)', false),
    ('Usage', 'createdAt', 'timestamp(3) without time zone', false),
    ('Usage', 'apiKeyId', 'character varying(255)', false),
    ('Usage', 'userId', 'text', false),
    ('Usage', 'provider', 'text', true),
    ('Usage', 'model', 'text', true),
    ('Usage', 'type', 'text', true),
    ('Usage', 'tokensIn', 'integer', true),
    ('Usage', 'tokensOut', 'integer', true),
    ('Usage', 'tokensTotal', 'integer', true),
    ('Usage', 'cost', 'numeric(10,6)', true),
    ('Usage', 'currency', 'text', true),
    ('Usage', 'metadata', 'jsonb', true)
),
found as (
    select
        c.relname::text as table_name,
        a.attname::text as column_name,
        format_type(a.atttypid, a.atttypmod) as type,
        not a.attnotnull as is_null
    from pg_class as c
    inner join pg_attribute as a on a.attrelid = c.oid
    where c.oid in (
        select to_regclass(format('%I', e.table_name))
        from expected as e
    )
        -- Rows of a partitioned one stand at no place of their own.
        and c.relkind = 'r'
        and a.attnum > 0
        and not a.attisdropped
)
select
    coalesce(e.table_name, f.table_name) as table_name,
    coalesce(e.column_name, f.column_name) as column_name,
    case
        when e.table_name is null then 'is unknown here, and would stay behind'
        when to_regclass(format('%I', e.table_name)) is null then 'there is no such table'
        when f.table_name is null then 'is missing'
        when e.type <> f.type then concat('is ', f.type, ', and ', e.type, ' is expected')
        else 'may be null, which is not expected'
    end as problem,
    e.table_name is null as is_more
from expected as e
full join found as f on f.table_name = e.table_name and f.column_name = e.column_name
where e.table_name is null
    or f.table_name is null
    -- References are text where the model says nothing of their length.
    or not (e.type = f.type or (e.column_name in ('agentId', 'packageId', 'apiKeyId') and f.type = 'text'))
    or (f.is_null and not e.is_null)
order by 4, 1, 2;
