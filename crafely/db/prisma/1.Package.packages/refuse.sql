-- A price is a double in the source, such as 9.99, which as a decimal has two places or is none that somebody meant.
insert into crafely_import.refused (table_name, id, column_name, rule)
select 'Package', s.id, r.column_name, r.rule
from crafely_import.packages as s
cross join lateral (
    values
    ('id', 'expected 1 to 255 characters', s.id = ''),
    ('name', 'expected 1 to 255 characters', length(s.name) not between 1 and 255),
    (
        'price',
        'expected an amount from 0 to 9999999999.99 with at most two decimal places',
        case
            when s.price between 0 and 9999999999.99 then round(s.price::numeric, 2) <> s.price::numeric
            else true
        end
    ),
    ('features', 'expected at most 100', cardinality(s.features) > 100),
    (
        'features',
        'expected a plain list without null in it',
        array_ndims(s.features) > 1
        or exists (
            select
            from unnest(s.features) as f (text)
            where f.text is null
        )
    ),
    ('interval', 'expected month or year', s."interval" not in ('month', 'year')),
    ('createdAt', 'expected a time in the years 1 to 9999', s.created_at not between '0001-01-01' and '9999-12-31'),
    ('updatedAt', 'expected a time in the years 1 to 9999', s.updated_at not between '0001-01-01' and '9999-12-31')
) as r (column_name, rule, is_broken)
where r.is_broken;
