"""What knows PostgreSQL, and knows no table and no HTTP."""
