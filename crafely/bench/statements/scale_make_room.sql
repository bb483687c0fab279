-- Takes away a month without rows that housekeeping made, for one that is filled aside.
drop table if exists {part};
