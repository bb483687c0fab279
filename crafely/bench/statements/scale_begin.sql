-- A month aside, to be filled before it has indexes: made of rows that are there they take a quarter of the time.
create table {aside} (like usage including all excluding identity excluding indexes);
