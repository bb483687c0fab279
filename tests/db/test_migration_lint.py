"""``migrate lint``: each small wrong migration is found by its rule, in its file and line; ours have none."""

from pathlib import Path

import pytest

from crafely.db import embedded, query, schema_file, squawk
from crafely.db.migration_files import MigrationError, load
from crafely.db.migration_lint import lint, uses

FIRST = """-- Two tables of tenants.
create table a (
    id text not null,
    user_id text not null,
    note text,
    constraint a_pkey primary key (id),
    constraint a_user_id_id_key unique (user_id, id)
);
create table b (
    id text not null,
    user_id text not null,
    constraint b_pkey primary key (id)
);
create index b_user_id_idx on b (user_id);
"""
# Migrations: the text there, the text back, and what is found; {n} is the number. The header is line 1 of each.
OURS = {
    "no index of a foreign key": (
        (
            "-- Why.\ncreate table c{n} (\n    id text not null,\n    a_id text,\n"
            "    constraint c{n}_pk primary key (id),\n"
            "    constraint c{n}_a_id_fkey foreign key (a_id) references a (id)\n);\n"
        ),
        "-- Back.\ndrop table c{n};\n",
        "migrations/{n}.c.sql:6: foreign-key-index: c{n}_a_id_fkey: no index of c{n} begins with (a_id)",
    ),
    "a foreign key without a name": (
        "-- Why.\ncreate table c{n} (\n    id text primary key,\n    a_id text references a (id)\n);\n",
        "-- Back.\ndrop table c{n};\n",
        "migrations/{n}.c.sql:4: foreign-key-index: c{n}_a_id_fkey:",
    ),
    "an index of the tenant alone": (
        (
            "-- Why.\nalter table b add column a_id text;\nalter table b add constraint b_user_id_a_id_fkey\n"
            "    foreign key (user_id, a_id) references a (user_id, id) not valid;\n"
            "create index b_user_id_id_idx on b (user_id, id);\n"
        ),
        "-- Back.\nalter table b drop column a_id;\n",
        "migrations/{n}.c.sql:3: foreign-key-index: b_user_id_a_id_fkey: no index of b begins with (user_id, a_id)",
    ),
    "an index of some rows": (
        (
            "-- Why.\ncreate table c{n} (id text primary key, a_id text, on_sale boolean);\n"
            "alter table c{n} add constraint c{n}_a_id_fkey foreign key (a_id) references a (id);\n"
            "create index c{n}_a_id_idx on c{n} (a_id) where on_sale;\n"
        ),
        "-- Back.\ndrop table c{n};\n",
        "migrations/{n}.c.sql:3: foreign-key-index: c{n}_a_id_fkey",
    ),
    "a lock timeout": (
        "-- Why.\nset local lock_timeout = '1h';\nalter table a add column size{n} text;\n",
        "-- Back.\nalter table a drop column size{n};\n",
        "migrations/{n}.c.sql:2: lock-timeout: the runner sets lock_timeout",
    ),
    "a lock timeout on the way back": (
        "-- Why.\nalter table a add column size{n} text;\n",
        "-- Back.\nalter table a drop column size{n};\nset lock_timeout = 0;\n",
        "migrations/{n}.c.rollback.sql:3: lock-timeout:",
    ),
    "if not exists": (
        "-- Why.\n-- transactional: false\ncreate index concurrently\n    if not exists a_note{n}_idx on a (note);\n",
        "-- Back.\ndrop index concurrently a_note{n}_idx;\n",
        "migrations/{n}.c.sql:4: if-not-exists: takes an invalid index",
    ),
    "a volatile default": (
        "-- Why.\nalter table a\n    add size{n} bigint,\n    add column key{n} uuid default gen_random_uuid();\n",
        "-- Back.\nalter table a drop column size{n}, drop column key{n};\n",
        "migrations/{n}.c.sql:4: rewrite: the volatile default gen_random_uuid() writes every row of a anew",
    ),
    "a hidden volatile default": (
        "-- Why.\nalter table a add column at{n} timestamptz default date_trunc('day', clock_timestamp());\n",
        "-- Back.\nalter table a drop column at{n};\n",
        "migrations/{n}.c.sql:2: rewrite: the volatile default clock_timestamp()",
    ),
    "a stored column": (
        "-- Why.\nalter table a add column size{n} bigint generated always as (length(note)) stored;\n",
        "-- Back.\nalter table a drop column size{n};\n",
        "migrations/{n}.c.sql:2: rewrite: `generated always as (…)` writes",
    ),
    "a serial": (
        "-- Why.\nalter table a add number{n} bigserial;\n",
        "-- Back.\nalter table a drop column number{n};\n",
        "migrations/{n}.c.sql:2: rewrite: `bigserial` writes every row of a anew",
    ),
    "an index that a statement counts on": (
        "-- Why.\ndrop index\n    b_user_id_idx;\n",
        "-- Back.\ncreate index b_user_id_idx on b (user_id);\n",
        "migrations/{n}.c.sql:2: index-in-use: drops b_user_id_idx, which `-- uses:` of sql/b/list.sql:4 counts on",
    ),
}
# What keeps a folder from being tried at all.
BROKEN = {
    "it does not run": (
        "-- Why.\nalter table a add column size bigint;\nalter table z add column size bigint;\n",
        "-- Back.\nalter table a drop column size;\n",
        'migrations/0002.c.sql:3: file: relation "z" does not exist',
    ),
    "no header": ("select 1;\n", "-- Back.\nselect 1;\n", "migrations/0002.c.sql:1: file: begins with `-- ` lines"),
    "no twin": ("-- Why.\nselect 1;\n", None, "migrations/0002.c.sql:1: file: 0002.c.rollback.sql is missing"),
    "two statements outside a transaction": (
        "-- Why.\n-- transactional: false\nselect 1;\n\nselect 2;\n",
        "-- Back.\nselect 1;\n",
        "migrations/0002.c.sql:5: file: 2 statements; outside a transaction a file holds exactly one",
    ),
    "a commit": ("-- Why.\nselect 1;\n\ncommit;\n", "-- Back.\nselect 1;\n", "migrations/0002.c.sql:4: file: `commit`"),
}
SQUAWKS = {
    "an index that stops writers": (
        "-- Why.\ncreate index a_note_idx on a (note);\n",
        "-- Back.\ndrop index a_note_idx;\n",
        "migrations/0002.c.sql:2: require-concurrent-index-creation:",
    ),
    "concurrently in a transaction": (
        "-- Why.\nselect 1;\ncreate index concurrently a_note_idx on a (note);\n",
        "-- Back.\ndrop index a_note_idx;\n",
        "migrations/0002.c.sql:3: ban-concurrent-index-creation-in-transaction:",
    ),
    "a constraint that reads all rows": (
        "-- Why.\nalter table a add constraint a_note_check check (length(note) < 9);\n",
        "-- Back.\nalter table a drop constraint a_note_check;\n",
        "migrations/0002.c.sql:2: constraint-missing-not-valid:",
    ),
    "not null at once": (
        "-- Why.\nalter table a alter column note set not null;\n",
        "-- Back.\nalter table a alter column note drop not null;\n",
        "migrations/0002.c.sql:2: adding-not-nullable-field:",
    ),
    "a column that must have a value": (
        "-- Why.\nalter table a add column must text not null;\n",
        "-- Back.\nalter table a drop column must;\n",
        "migrations/0002.c.sql:2: adding-required-field:",
    ),
    "another type": (
        "-- Why.\nalter table a alter column note type varchar(9);\n",
        "-- Back.\nalter table a alter column note type text;\n",
        "migrations/0002.c.sql:2: changing-column-type:",
    ),
    "another name": (
        "-- Why.\nalter table a rename column note to remark;\n",
        "-- Back.\nalter table a rename column remark to note;\n",
        "migrations/0002.c.sql:2: renaming-column:",
    ),
    "a column less": (
        "-- Why.\nalter table a drop column note;\n",
        "-- Back.\nalter table a add column note text;\n",
        "migrations/0002.c.sql:2: ban-drop-column:",
    ),
}
GOOD = {
    "a plain column": ("alter table a add column size bigint default 0;", "alter table a drop column size;"),
    "a stable default": ("alter table a add column at timestamptz default now();", "alter table a drop column at;"),
    "a default of a new table": (
        (
            "create table c (id uuid primary key default gen_random_uuid());\n"
            "-- squawk-ignore adding-field-with-default\n"
            "alter table c add column key uuid default gen_random_uuid();"
        ),
        "drop table c;",
    ),
    "a rewrite with a reason": (
        "-- lint-ignore rewrite: few rows, for good\nalter table a add column key uuid default gen_random_uuid();",
        "alter table a drop column key;",
    ),
    "an index where the key is": (
        (
            "create table d (id text primary key, a_id text references a (id));\n"
            "create index d_a_id_idx on d (a_id) where a_id is not null;"
        ),
        "drop table d;",
    ),
    "a function's own timeout": (
        "create function f() returns int language sql set lock_timeout = '1ms' return 1;",
        "drop function f();",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one good migration, and statements that count on an index of it."""
    return tree(tmp_path, monkeypatch)


def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "migrations"
    statements = tmp_path / "sql"
    (statements / "b").mkdir(parents=True)
    (statements / "b" / "list.sql").write_text(
        "-- sql/b/list.sql\n-- All of a user's.\n-- returns: many B\n-- uses: b_user_id_idx\nselect id from b;\n"
    )
    monkeypatch.setattr(query, "folder", lambda: statements)
    place.mkdir()
    write(place, "0001.ab", FIRST, "-- Back.\ndrop table b, a;\n")
    return place


def write(folder: Path, name: str, there: str, back: str | None) -> None:
    (folder / f"{name}.sql").write_text(there)
    if back is not None:
        (folder / f"{name}.rollback.sql").write_text(back)


def found(server: embedded.Server, folder: Path) -> list[str]:
    return [str(finding) for finding in lint(server.url, folder)]


@pytest.fixture(scope="module")
def ours(server: embedded.Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is found, without squawk, in one folder of all that our rules are there for."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tree(tmp_path_factory.mktemp("ours"), patch)
        patch.setattr(squawk, "find", lambda: None)
        for number, (there, back, _) in enumerate(OURS.values(), 2):
            n = f"{number:04}"
            write(folder, f"{n}.c", there.replace("{n}", n), back.replace("{n}", n))
        return found(server, folder)


@pytest.mark.parametrize("name", OURS)
def test_our_rules_find_it_without_squawk(ours: list[str], name: str) -> None:
    n = f"{[*OURS].index(name) + 2:04}"
    (line,) = [line for line in ours if line.startswith(f"migrations/{n}.")]
    assert line.startswith(OURS[name][2].replace("{n}", n))


@pytest.mark.parametrize(("there", "back", "said"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_tried_is_one_finding(
    server: embedded.Server, folder: Path, there: str, back: str | None, said: str
) -> None:
    write(folder, "0002.c", there, back)
    (line,) = found(server, folder)
    assert line.startswith(said)


@pytest.mark.parametrize(("there", "back", "said"), SQUAWKS.values(), ids=SQUAWKS)
def test_squawk_finds_it(folder: Path, there: str, back: str, said: str) -> None:
    write(folder, "0002.c", there, back)
    program = squawk.find()
    assert program is not None
    lines = [str(finding) for finding in squawk.run(program, folder, load(folder))]
    assert [line for line in lines if line.startswith(said)], lines
    # A way back takes away what the way there made, and is left alone.
    assert [line for line in lines if "rollback" in line] == []


def test_what_is_right_is_let_pass(server: embedded.Server, folder: Path) -> None:
    for number, (there, back) in enumerate(GOOD.values(), 2):
        write(folder, f"{number:04}.good", f"-- Why.\n{there}\n", f"-- Back.\n{back}\n")
    assert found(server, folder) == []


def test_several_broken_files_are_named_at_once(server: embedded.Server, folder: Path) -> None:
    write(folder, "0002.c", "select 1;\n", "-- Back.\nselect 1;\n")
    write(folder, "0003.d", "-- Why.\n\\d\n", "-- Back.\nselect 1;\n")
    assert [line.split(": ")[0] for line in found(server, folder)] == [
        "migrations/0002.c.sql:1",
        "migrations/0003.d.sql:2",
    ]


def test_our_own_migrations_have_no_finding_and_a_stale_schema_file_is_one(
    server: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert squawk.find() is not None
    text = schema_file.path().read_text()
    copy = tmp_path / "sql" / "schema.sql"
    copy.parent.mkdir()
    copy.write_text(text.replace("    tools jsonb,\n", "    tools json,\n"))
    monkeypatch.setattr(schema_file, "path", lambda: copy)
    line = text.splitlines().index("    tools jsonb,") + 1
    assert [str(one) for one in lint(server.url)] == [
        f"sql/schema.sql:{line}: schema: is not what the migrations make: run `make schema` and look at the diff"
    ]


def test_statements_say_which_indexes_they_count_on() -> None:
    named = uses(query.folder())
    assert len(named) > 20
    assert ("api_keys_key_id_hash_idx", "sql/api_keys/lookup.sql") in {(use.index, use.path) for use in named}


def test_a_squawk_that_does_not_answer_is_one_line(folder: Path, tmp_path: Path) -> None:
    mute = tmp_path / "squawk"
    mute.write_text("#!/bin/sh\nexit 3\n")
    mute.chmod(0o755)
    scripts = load(folder)
    with pytest.raises(MigrationError, match="squawk does not answer") as caught:
        squawk.run(mute, folder, scripts)
    assert "\n" not in str(caught.value)


def test_each_rule_that_is_off_has_its_reason() -> None:
    assert all(len(reason) > 15 for reason in [*squawk.OFF.values(), *squawk.OFF_IN_ROLLBACKS.values()])
