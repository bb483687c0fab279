-- Subscriptions, and whether a newer one of the same user to the same package is active, too.
select
    s.ctid as place,
    s."id" as id,
    s."status" as status,
    s."startDate" as start_date,
    s."endDate" as end_date,
    s."createdAt" as created_at,
    s."updatedAt" as updated_at,
    s."userId" as user_id,
    s."packageId" as package_id,
    s."status" = 'active'
    and exists (
        select
        from "UserSubscription" as o
        where o."userId" = s."userId"
            and o."packageId" = s."packageId"
            and o."status" = 'active'
            and (o."createdAt", o."id") > (s."createdAt", s."id")
    ) as is_superseded
from "UserSubscription" as s
