"""Rows that are hard to carry, in every table of a migrated database, and how to compare two databases."""

from datetime import UTC, date, datetime

import psycopg
from psycopg import sql

# What COPY's text format, JSON and a terminal each have a word for.
ODD = "tab\t, line\nend\r\n, \\N, \\., 'quotes' \"both\", {braces}, %s, :name, ünï→cødé 🐘, \x01"
# A month that no migration makes any more, and one that is in nobody's month.
OLD = date(datetime.now(UTC).year - 2, 3, 1)
OLDER = date(datetime.now(UTC).year - 3, 12, 31)


def fill(url: str) -> None:
    """Some rows in each table, with nulls, and usage of two old months: one in a month of its own, one in none."""
    with psycopg.connect(url) as connection:
        connection.execute("select set_config('crafely.user_id', 'alice', false)")
        for number in range(3):
            connection.execute(
                "insert into api_keys (id, key_id, hashed_key, name, permissions, user_id, rate_limit, rotated_from)"
                " values (%s, %s, 'hash', %s, %s, 'alice', 5, %s)",
                [
                    f"key_{number}",
                    f"k{number}",
                    ODD[:200],
                    ["a:read", '"', ODD],
                    f"key_{number - 1}" if number else None,
                ],
            )
        connection.execute(
            "insert into agents (id, name, instructions, tools, context, user_id)"
            " values ('agnt_1', %s, %s, %s, null, 'alice'), ('agnt_2', 'b', '', null, '', 'bob')",
            [ODD[:200], ODD * 500, '[{"name": "x\\ty", "n": 1.50}]'],
        )
        connection.execute(
            "insert into threads (name, storage_id, instructions, user_id, agent_id, deleted_at)"
            " values ('t', 's', %s, 'alice', 'agnt_1', now()), ('u', null, null, 'bob', null, null)",
            [ODD],
        )
        connection.execute(
            "insert into packages (id, name, price, features) values ('pkg_1', 'Pro', 9.90, '{a,\"b c\"}')"
        )
        connection.execute("insert into user_subscriptions (user_id, package_id) values ('alice', 'pkg_1')")
        _month(connection, "usage", OLD)
        for day in (OLD, OLDER, datetime.now(UTC).date()):
            connection.execute(
                "insert into usage (created_at, api_key_id, user_id, provider, tokens_in, tokens_total, cost, metadata)"
                " values (%s, 'key_1', 'alice', 'p', 3, 3, 0.000000000001, %s)",
                [day, '{"a": "\\u00e9"}'],
            )
            connection.execute(
                "insert into usage_daily (user_id, day, provider, currency, records, tokens_in, tokens_out,"
                " tokens_total, cost) values ('alice', %s, 'p', 'usd', 1, 3, 0, 3, 0.000000000001)",
                [day],
            )
        connection.execute(
            "insert into usage_events (user_id, event_id, usage_id) values ('alice', %s, 'use_1')", [ODD]
        )
        connection.execute("insert into monitor_samples (kind, name, bytes) values ('table', 'usage', 1)")
        connection.execute("update agents set context = 'new' where id = 'agnt_1'")
        if connection.execute("select to_regclass('encryption_keys')").fetchone() != (None,):
            # Texts are in clear here.
            connection.execute("insert into encryption_keys (id) values ('off') on conflict do nothing")


def _month(connection: psycopg.Connection, table: str, first: date) -> None:
    """A month as housekeeping made it long ago."""
    part = sql.Identifier(f"{table}_y{first:%Y}m{first:%m}")
    after = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    for text in (
        "create table {part} (like {table} including all excluding identity)",
        "alter table {table} attach partition {part} for values from ({first}) to ({after})",
        "alter table {part} enable row level security",
        "alter table {part} force row level security",
    ):
        values = {"first": sql.Literal(f"{first} 00:00+00"), "after": sql.Literal(f"{after} 00:00+00")}
        connection.execute(sql.SQL(text).format(part=part, table=sql.Identifier(table), **values))


def everything(url: str) -> dict[str, list[str]]:
    """Every row of every table and partition, as text."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "select relname from pg_class where relnamespace = 'public'::regnamespace"
            " and relkind in ('r', 'p') and relname !~ '^_?yoyo_' order by 1"
        ).fetchall()
        return {
            name: [
                row
                for (row,) in connection.execute(
                    sql.SQL("select t::text from {} as t order by 1").format(sql.Identifier(name))
                ).fetchall()
            ]
            for (name,) in found
        }
