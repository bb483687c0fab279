"""Crafely: API keys, agents, threads, packages, subscriptions and usage on PostgreSQL, in plain SQL."""

__version__ = "0.1.0"
