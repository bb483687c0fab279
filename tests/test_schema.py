"""The rules of the schema, asked of the catalogue, and the six models that it has to hold."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db import embedded, migrate


@pytest.fixture(scope="module")
def catalogue(server: embedded.Server, template: str) -> Iterator[psycopg.Connection]:
    """A migrated database to look at; «ours» are its tables, without partitions."""
    name = f"{template}_schema"
    parts: dict[str, Any] = {**conninfo_to_dict(server.url), "dbname": name}
    with psycopg.connect(server.url, autocommit=True) as administrator:
        administrator.execute(f"create database {name} template {template}".encode())
        with psycopg.connect(make_conninfo(**parts), autocommit=True) as connection:
            connection.execute("""
                create temporary view ours as
                select oid from pg_class
                where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition
                    and relname not like '%yoyo%'
            """)
            yield connection
        administrator.execute(f"drop database {name} with (force)".encode())


def rows(connection: psycopg.Connection, query: str, *values: object) -> list[Any]:
    """What a query gives; rows of one column as that column."""
    found = connection.execute(query.encode(), values).fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


def test_the_tables_are_those_that_the_readme_names(catalogue: psycopg.Connection) -> None:
    assert rows(catalogue, "select oid::regclass::text from ours order by 1") == [
        "agents",
        "api_keys",
        "audit_log",
        "audit_seals",
        "encryption_keys",
        "idempotency_keys",
        "monitor_samples",
        "packages",
        "threads",
        "usage",
        "usage_daily",
        "usage_drops",
        "usage_events",
        "user_subscriptions",
    ]


def test_every_foreign_key_has_an_index_on_its_own_side(catalogue: psycopg.Connection) -> None:
    keys = rows(
        catalogue,
        """
        select conname, conrelid::regclass::text, array_agg(a.attname::text order by a.attname)
        from pg_constraint c join pg_attribute a on a.attrelid = conrelid and a.attnum = any(conkey)
        where contype = 'f' and conrelid in (table ours)
        group by 1, 2
        """,
    )
    indexes = rows(
        catalogue,
        """
        select indrelid::regclass::text, array_agg(a.attname::text order by k.place)
        from pg_index i
        cross join unnest(i.indkey::int[]) with ordinality k (attnum, place)
        join pg_attribute a on a.attrelid = indrelid and a.attnum = k.attnum
        where indrelid in (table ours) and indisvalid
        group by indexrelid, 1
        """,
    )

    assert len(keys) == 4
    for name, table, columns in keys:
        # An index on the user alone would not do: it finds all of a user's rows.
        assert any(
            t == table and (set(found[: len(columns)]) == set(columns) or found[0] in {*columns} - {"user_id"})
            for t, found in indexes
        ), name


def test_names_of_constraints_tell_table_columns_and_kind(catalogue: psycopg.Connection) -> None:
    kinds = {"p": "pkey", "u": "key", "f": "fkey", "c": "check"}
    found = rows(
        catalogue,
        """
        select conname, conrelid::regclass::text, contype::text, (
            select array_agg(a.attname::text order by array_position(c.conkey, a.attnum))
            from pg_attribute a where a.attrelid = conrelid and a.attnum = any(conkey)
        )
        from pg_constraint c
        where conrelid in (table ours) and contype in ('p', 'u', 'f', 'c')
        """,
    )

    assert len(found) > 40
    for name, table, kind, columns in found:
        if kind == "p":
            assert name == f"{table}_pkey"
        elif kind == "c":
            # Of several columns that one of them bears, or all.
            assert name in {f"{table}_{column}_check" for column in [*columns, "_".join(columns)]}
        else:
            assert name == f"{table}_{'_'.join(columns)}_{kinds[kind]}"


def test_names_of_indexes_tell_table_and_columns(catalogue: psycopg.Connection) -> None:
    found = rows(
        catalogue,
        """
        select relname, indrelid::regclass::text, array(
            select regexp_replace(regexp_replace(pg_get_indexdef(indexrelid, n, true), '[^a-z_]+', '_', 'g'), '_$', '')
            from generate_series(1, indnkeyatts) n
        ), amname
        from pg_index i join pg_class c on c.oid = indexrelid join pg_am a on a.oid = c.relam
        where indrelid in (table ours)
            and not exists (select from pg_constraint where conindid = indexrelid and contype in ('p', 'u'))
        """,
    )

    assert len(found) > 15
    for name, table, columns, method in found:
        # A hash index says so: it stands beside the unique one of the same column.
        kind = "_hash" if method == "hash" else ""
        assert name == f"{table}_{'_'.join(columns)}{kind}_idx"


def test_times_have_a_zone_and_money_is_exact(catalogue: psycopg.Connection) -> None:
    types = rows(
        catalogue,
        "select distinct format_type(atttypid, null) from pg_attribute where attrelid in (table ours) and attnum > 0"
        " and not attisdropped order by 1",
    )

    assert types == [
        "bigint",
        "boolean",
        "bytea",
        "character varying",
        "date",
        "int8multirange",
        "integer",
        "jsonb",
        "numeric",
        "text",
        "text[]",
        "timestamp with time zone",
        "xid8",
    ]


# Rows of these are never changed.
APPEND_ONLY = {"usage", "usage_drops", "audit_log", "audit_seals", "idempotency_keys", "monitor_samples"}


def test_every_table_knows_when_a_row_was_made_and_changed(catalogue: psycopg.Connection) -> None:
    for table in rows(catalogue, "select oid::regclass::text from ours"):
        stamps = rows(
            catalogue,
            "select column_name, is_nullable, column_default from information_schema.columns"
            " where table_schema = 'public' and table_name = %s and column_name in ('created_at', 'updated_at')"
            " order by 1",
            table,
        )
        triggers = rows(
            catalogue,
            "select tgname from pg_trigger where tgrelid = %s::regclass and tgfoid = 'set_updated_at'::regproc",
            table,
        )
        if table in APPEND_ONLY:
            assert stamps == [("created_at", "NO", "now()")]
            assert triggers == []
        else:
            assert stamps == [("created_at", "NO", "now()"), ("updated_at", "NO", "now()")]
            assert triggers == [f"{table}_set_updated_at"]


# The six models: field, column, type, whether it may be null, and its default (of an id: its prefix). What Prisma calls
# @updatedAt is kept by the trigger tested above.
MODELS = {
    "api_keys": """
        id          id           varchar(255)  required  key_
        keyId       key_id       text          required
        hashedKey   hashed_key   text          required
        name        name         text          optional
        prefix      prefix       text          optional
        permissions permissions  text[]        required  '{}'::text[]
        active      active       boolean       required  true
        createdAt   created_at   timestamptz   required  now()
        updatedAt   updated_at   timestamptz   required  now()
        lastUsedAt  last_used_at timestamptz   optional
        userId      user_id      text          required
    """,
    "agents": """
        id           id           varchar(255)  required  agnt_
        name         name         text          required
        instructions instructions text          required
        tools        tools        jsonb         optional
        context      context      text          optional
        createdAt    created_at   timestamptz   required  now()
        updatedAt    updated_at   timestamptz   required  now()
        deletedAt    deleted_at   timestamptz   optional
        userId       user_id      text          required
    """,
    "threads": """
        id           id           varchar(255)  required  thrd_
        name         name         text          required
        storageId    storage_id   text          optional
        instructions instructions text          optional
        model        model        text          optional
        createdAt    created_at   timestamptz   required  now()
        updatedAt    updated_at   timestamptz   required  now()
        deletedAt    deleted_at   timestamptz   optional
        userId       user_id      text          required
        agentId      agent_id     varchar(255)  optional
    """,
    "packages": """
        id          id          varchar(255)   required  pkg_
        name        name        text           required
        description description text           optional
        price       price       numeric(12,2)  required
        features    features    text[]         required  '{}'::text[]
        interval    interval    text           required  'month'::text
        active      active      boolean        required  true
        createdAt   created_at  timestamptz    required  now()
        updatedAt   updated_at  timestamptz    required  now()
    """,
    "user_subscriptions": """
        id          id          varchar(255)  required  sub_
        status      status      text          required  'active'::text
        startDate   start_date  timestamptz   required  now()
        endDate     end_date    timestamptz   optional
        createdAt   created_at  timestamptz   required  now()
        updatedAt   updated_at  timestamptz   required  now()
        userId      user_id     text          required
        packageId   package_id  varchar(255)  required
    """,
    "usage": """
        id          id           varchar(255)    required  use_
        createdAt   created_at   timestamptz     required  now()
        apiKeyId    api_key_id   varchar(255)    required
        userId      user_id      text            required
        provider    provider     text            optional
        model       model        text            optional
        type        type         text            optional
        tokensIn    tokens_in    integer         optional
        tokensOut   tokens_out   integer         optional
        tokensTotal tokens_total integer         optional
        cost        cost         numeric(20,12)  optional
        currency    currency     text            optional  'usd'::text
        metadata    metadata     jsonb           optional
    """,
}
UNIQUE = [("api_keys", "key_id"), ("threads", "storage_id"), ("packages", "name")]


@pytest.mark.parametrize("table", MODELS)
def test_each_field_of_the_model_is_a_column_with_its_type_and_default(
    catalogue: psycopg.Connection, table: str
) -> None:
    columns = {
        name: (kind, required, default)
        for name, kind, required, default in rows(
            catalogue,
            "select attname, format_type(atttypid, atttypmod), attnotnull, coalesce(pg_get_expr(adbin, adrelid), '')"
            " from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum"
            " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
            table,
        )
    }

    for field, column, kind, required, *default in (line.split() for line in MODELS[table].strip().splitlines()):
        assert column == re.sub("([A-Z])", lambda m: "_" + m[1].lower(), field)
        full_kind = kind.replace("varchar", "character varying").replace("timestamptz", "timestamp with time zone")
        expected = "".join(default)
        if column == "id":
            expected = f"concat('{expected}', gen_random_uuid())"
        assert columns[column] == (full_kind, required == "required", expected), field


@pytest.mark.parametrize(("table", "column"), UNIQUE)
def test_what_was_unique_still_is(catalogue: psycopg.Connection, table: str, column: str) -> None:
    unique = rows(catalogue, "select conname from pg_constraint where conrelid = %s::regclass and contype = 'u'", table)
    assert f"{table}_{column}_key" in unique


# The source's indexes, and the first columns of ours that answer the same questions.
INDEXES = [
    ("api_keys", ["user_id", "active"]),
    ("api_keys", ["key_id"]),
    ("agents", ["user_id"]),
    ("threads", ["user_id"]),
    ("threads", ["user_id", "agent_id"]),
    ("user_subscriptions", ["user_id"]),
    ("user_subscriptions", ["package_id"]),
    ("usage", ["api_key_id", "created_at"]),
    ("usage", ["user_id", "created_at"]),
    ("usage_daily", ["provider", "model"]),
]


@pytest.mark.parametrize(("table", "columns"), INDEXES)
def test_what_was_indexed_still_is(catalogue: psycopg.Connection, table: str, columns: list[str]) -> None:
    indexes = rows(
        catalogue,
        "select array(select pg_get_indexdef(indexrelid, n, true) from generate_series(1, indnkeyatts) n)"
        " from pg_index where indrelid = %s::regclass",
        table,
    )
    assert columns in [found[: len(columns)] for found in indexes]


def dump(server: embedded.Server, url: str) -> str:
    command = [str(server.bin / "pg_dump"), "--schema-only", "--restrict-key=same", "-d", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "restrict-key" in done.stderr:  # a pg_dump from before that option
        done = subprocess.run([c for c in command if "restrict" not in c], capture_output=True, text=True, check=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_way_there_and_back_and_there_again_leaves_the_same_schema(
    server: embedded.Server, empty_database: str
) -> None:
    migrate.up(empty_database)
    first = dump(server, empty_database)
    assert "create table public.usage_daily" in first.lower()

    migrate.down(empty_database, steps=None)
    with psycopg.connect(empty_database) as connection:
        left = rows(
            connection,
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relname not like '%%yoyo%%'"
            " union all select proname from pg_proc where pronamespace = 'public'::regnamespace",
        )
    assert left == []

    migrate.up(empty_database)
    assert dump(server, empty_database) == first
