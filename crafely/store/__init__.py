"""One module for each table: its rows, and the statements in ``sql/`` of the same name. No logic, no HTTP."""

from crafely.store import (
    agents,
    api_keys,
    audit_log,
    encryption_keys,
    idempotency_keys,
    monitor,
    packages,
    threads,
    usage,
    user_subscriptions,
)

__all__ = [
    "agents",
    "api_keys",
    "audit_log",
    "encryption_keys",
    "idempotency_keys",
    "monitor",
    "packages",
    "threads",
    "usage",
    "user_subscriptions",
]
