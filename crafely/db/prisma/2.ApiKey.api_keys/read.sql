-- Keys. Prisma reads a list that is null as an empty one, and so do we.
select
    s.ctid as place,
    s."id" as id,
    s."keyId" as key_id,
    s."hashedKey" as hashed_key,
    s."name" as name,
    s."prefix" as prefix,
    coalesce(s."permissions", '{}') as permissions,
    s."active",
    s."createdAt" as created_at,
    s."updatedAt" as updated_at,
    s."lastUsedAt" as last_used_at,
    s."userId" as user_id
from "ApiKey" as s
