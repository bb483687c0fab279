-- Packages. Prisma reads a list that is null as an empty one, and so do we.
select
    s.ctid as place,
    s."id" as id,
    s."name" as name,
    s."description" as description,
    s."price" as price,
    coalesce(s."features", '{}') as features,
    s."interval",
    s."active",
    s."createdAt" as created_at,
    s."updatedAt" as updated_at
from "Package" as s
