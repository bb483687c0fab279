"""``/v1/audit-log``, end to end."""
