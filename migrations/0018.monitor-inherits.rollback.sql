-- Nothing is taken back: the role is the whole server's, and other databases use it. What it may see goes with it.
do $$
begin
    null;
end
$$;
