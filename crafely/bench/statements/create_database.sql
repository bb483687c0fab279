-- The name is put in as an identifier.
create database {name};
