-- sql/packages/create.sql
-- A new package.
-- returns: one Package
-- role: crafely_admin
insert into packages (name, description, price, features, "interval", active)
values (:name, :description, :price, :features, :interval, :active)
returning id, name, description, price, features, "interval", active, created_at, updated_at;
