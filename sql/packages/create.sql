-- sql/packages/create.sql
-- A new package.
-- returns: one Package
-- role: crafely_admin
insert into packages (name, description, price, features, "interval", active, rate_limit)
values (:name, :description, :price, :features, :interval, :active, :rate_limit)
returning id, name, description, price, features, "interval", active, rate_limit, created_at, updated_at;
