"""``check --against``: each change of a schema that would break the release that serves is found, in its place."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crafely.db import embedded
from crafely.db.against import Against, RevisionError, against

FIRST = """-- Notes of users.
create table notes (
    id text primary key default gen_random_uuid(),
    user_id text not null,
    title text not null,
    body text,
    kind text not null default 'plain'
);
create index notes_user_id_idx on notes (user_id);
grant select, insert on notes to crafely_app;
"""
GET = """-- sql/notes/list_for_user.sql
-- A user's notes.
-- returns: many Note
-- uses: notes_user_id_idx
select id, title, body
from notes
where user_id = :user_id;
"""
CREATE = """-- sql/notes/create.sql
-- One more.
-- returns: count
insert into notes (user_id, title)
values (:user_id, :title);
"""
# The migration that comes with the new release, and what is found.
RETYPED = """alter table notes alter column body type jsonb using null;
alter table notes alter column title drop not null;
alter table notes add column must text not null;
alter table notes alter column kind drop default;
drop index notes_user_id_idx;"""
KEYED = """drop index notes_user_id_idx;
alter table notes alter column user_id type bigint using 1;
create index notes_user_id_idx on notes (user_id);"""
GET_AT = "HEAD:sql/notes/list_for_user.sql"
CREATE_AT = "HEAD:sql/notes/create.sql"
REFUSED = "rolling: ran as crafely_app and is refused on this schema:"
BREAKS: dict[str, tuple[str, list[str]]] = {
    "a type, a null, a new column, a default and an index": (
        RETYPED,
        [
            f"{GET_AT}:3: rolling: body text becomes body jsonb on this schema",
            f"{GET_AT}:3: rolling: column title may be null now, and what serves counts on it",
            f"{CREATE_AT}:4: rolling: inserts into notes without must, which must have a value now",
            f"{CREATE_AT}:4: rolling: inserts into notes without kind, which must have a value now",
            f"migrations/0002.next.sql:6: index-in-use: drops notes_user_id_idx, which `-- uses:` of {GET_AT}:4 counts",
        ],
    ),
    "a column is dropped, a grant is lost": (
        "alter table notes drop column body;\nrevoke insert on notes from crafely_app;",
        [f'{GET_AT}:5: {REFUSED} column "body"', f"{CREATE_AT}:4: {REFUSED} permission denied"],
    ),
    "a column and an index get other names": (
        "alter table notes rename column title to name;\nalter index notes_user_id_idx rename to notes_user_idx;",
        [
            f'{GET_AT}:5: {REFUSED} column "title"',
            f'{CREATE_AT}:4: {REFUSED} column "title" of',
            f"{GET_AT}:4: index-in-use: counts on notes_user_id_idx, which this schema does not have",
        ],
    ),
    "a table is renamed": (
        "alter table notes rename to papers;",
        [f'{GET_AT}:6: {REFUSED} relation "notes"', f'{CREATE_AT}:4: {REFUSED} relation "notes"'],
    ),
    "a parameter's type": (
        KEYED,
        [f"{GET_AT}:3: rolling: $1 text becomes $1 bigint", f"{CREATE_AT}:3: rolling: $1 text becomes $1 bigint"],
    ),
}
FITS = [
    "alter table notes add column color text;",
    "alter table notes add column size bigint not null default 0;",
    "create table others (id bigint not null);",
    "alter table notes alter column body set default '';",
    "create index notes_title_idx on notes (title);",
]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    program = shutil.which("git") or "git"
    subprocess.run([program, *who, *arguments], cwd=folder, env=environ, check=True, capture_output=True, timeout=60)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout whose HEAD is the release that serves."""
    write(tmp_path, {"0001.notes": (FIRST, "-- Back.\ndrop table notes;\n")})
    statements = tmp_path / "sql" / "notes"
    statements.mkdir(parents=True)
    (statements / "list_for_user.sql").write_text(GET)
    (statements / "create.sql").write_text(CREATE)
    (tmp_path / "sql" / "README.md").write_text("For people.\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "The release that serves")
    return tmp_path


def write(tree: Path, migrations: dict[str, tuple[str, str]]) -> None:
    (tree / "migrations").mkdir(exist_ok=True)
    for name, (there, back) in migrations.items():
        (tree / "migrations" / f"{name}.sql").write_text(there)
        (tree / "migrations" / f"{name}.rollback.sql").write_text(back)


def held(server: embedded.Server, tree: Path) -> Against:
    return against(server.url, "HEAD", root=tree)


@pytest.mark.parametrize(("change", "said"), BREAKS.values(), ids=BREAKS)
def test_what_breaks_the_release_that_serves_is_found(
    server: embedded.Server, template: str, tree: Path, change: str, said: list[str]
) -> None:
    write(tree, {"0002.next": (f"-- Why.\n{change}\n", "-- Back.\nselect 1;\n")})
    found = [str(finding) for finding in held(server, tree).findings]
    assert len(found) == len(said)
    for start in said:
        assert [line for line in found if line.startswith(start)], (start, found)


def test_what_it_can_live_with_is_let_pass(server: embedded.Server, template: str, tree: Path) -> None:
    write(tree, {"0002.next": ("-- Why.\n" + "\n".join(FITS), "-- Back.\nselect 1;\n")})
    assert held(server, tree) == Against([], [], 2)


def test_a_statement_that_needs_the_new_schema_says_what_comes_first(
    server: embedded.Server, template: str, tree: Path
) -> None:
    write(tree, {"0002.next": ("-- Why.\nalter table notes add column color text;\n", "-- Back.\nselect 1;\n")})
    path = tree / "sql" / "notes" / "list_for_user.sql"
    path.write_text(GET.replace("title, body", "title,\n    color"))
    found = held(server, tree)
    assert found.findings == []
    (notice,) = found.notices
    assert (notice.path, notice.line, notice.rule) == ("sql/notes/list_for_user.sql", 6, "order")
    assert notice.problem == (
        'is refused as crafely_app (column "color" does not exist) on the schema of HEAD: migrate before this is served'
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("0001.notes.sql", "    body text,\n", "    body jsonb,\n"),
            "migrations/0001.notes.sql:6: history: was changed",
        ),
        (
            ("0001.notes.rollback.sql", "drop table", "drop table if exists"),
            "migrations/0001.notes.rollback.sql:2: hist",
        ),
    ],
)
def test_a_migration_that_was_edited_is_named_with_its_line(
    server: embedded.Server, template: str, tree: Path, change: tuple[str, str, str], said: str
) -> None:
    name, was, now = change
    path = tree / "migrations" / name
    path.write_text(path.read_text().replace(was, now))
    (finding,) = held(server, tree).findings
    assert str(finding).startswith(said)


def test_a_migration_that_is_gone_is_named(server: embedded.Server, template: str, tree: Path) -> None:
    for path in (tree / "migrations").iterdir():
        path.rename(path.with_name(path.name.replace("notes", "papers")))
    (finding,) = held(server, tree).findings
    assert str(finding).startswith("migrations/0001.notes.sql:1: history: HEAD has it, and this tree does not")


@pytest.mark.parametrize("revision", ["no-such-revision", "--output=/tmp/x", "HEAD:sql"])
def test_a_revision_that_is_none_is_one_line(server: embedded.Server, tree: Path, revision: str) -> None:
    with pytest.raises(RevisionError) as caught:
        against(server.url, revision, root=tree)
    assert str(caught.value).startswith(f"{revision}: ")
    assert "\n" not in str(caught.value)


def test_outside_a_checkout_there_is_nothing_to_compare_with(server: embedded.Server, tmp_path: Path) -> None:
    with pytest.raises(RevisionError, match="not a git repository"):
        against(server.url, "HEAD", root=tmp_path)
