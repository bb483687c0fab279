-- Keys that are here, and that nobody can present: the form of a token and its hash are ours alone. Their holders get
-- new ones by rotating them.
select k.id, r.column_name, r.rule
from api_keys as k
cross join lateral (
    values
    ('keyId', 'taken, but no token has a key id that is not 16 letters and digits', k.key_id !~ '^[0-9A-Za-z]{16}$'),
    (
        'hashedKey',
        'taken, but only argon2id in PHC form can be verified',
        k.hashed_key !~ '^\$argon2id\$v=[0-9]+\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$'
    )
) as r (column_name, rule, is_so)
where r.is_so
