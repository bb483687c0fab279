"""The store as it is has no finding; each small wrong change is found, with its rule, file and line."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db import contract, embedded, filled, plans, query
from crafely.db.contract import Finding, facts, grants, nodes, style, tree
from crafely.db.contract.nullability import Nullability
from tests.db.contract_mutants import HARMLESS, MUTANTS
from tests.db.mutants import Copy, Mutant, caught


@pytest.fixture(scope="module")
def connection(server: embedded.Server) -> Iterator[psycopg.Connection]:
    """A scratch database, migrated and filled."""
    parts: dict[str, Any] = conninfo_to_dict(server.url)
    with psycopg.connect(server.url, autocommit=True) as administrator:
        administrator.execute("create database crafely_filled")
        url = make_conninfo(**{**parts, "dbname": "crafely_filled"})
        filled.fill(url)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
        administrator.execute("drop database crafely_filled with (force)")


@pytest.fixture(scope="module")
def copy(connection: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Copies of the files, to break."""
    return Copy(tmp_path_factory.mktemp("copy") / "sql", connection)


def test_the_clean_tree_has_no_finding(connection: psycopg.Connection) -> None:
    assert len(query.statements) > 40
    assert contract.check(connection) == []


def test_a_check_leaves_nothing_behind(connection: psycopg.Connection) -> None:
    def left() -> list[tuple[Any, ...]]:
        return connection.execute(
            "select current_user, current_setting('plan_cache_mode'),"
            " (select count(*) from pg_prepared_statements where name like 'crafely%'),"
            " (select count(*) from pg_proc where pronamespace = pg_my_temp_schema())"
        ).fetchall()

    before = left()
    contract.check(connection)

    assert left() == before


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_caught(copy: Copy, mutant: Mutant) -> None:
    caught(copy, mutant)


@pytest.mark.parametrize(("where", "old", "new"), HARMLESS)
def test_a_change_that_does_no_harm_is_let_through(copy: Copy, where: str, old: str, new: str) -> None:
    before = copy.text(where)
    assert old in before
    assert copy.findings({where: before.replace(old, new, 1)}, only=where) == []


def test_an_index_that_row_level_security_costs_is_named(copy: Copy) -> None:
    """An index on a function of a column would serve a superuser, and never a user."""
    by_name = 'create index by_name on agents (user_id, (lower(name) collate "C")) where deleted_at is null'
    named = copy.text("agents/list_by_name").replace("uses: agents_user_id_created_at_id_idx", "uses: by_name")

    found = copy.findings({"agents/list_by_name": named}, f"{by_name}; analyze agents", only="agents/list_by_name")

    said = "row-level security costs crafely_app the index by_name: a function of a column that is not leakproof"
    path = "sql/agents/list_by_name.sql"
    assert [(f.path, f.line, f.rule) for f in found if f.problem.startswith(said)] == [(path, 5, "uses")]


FIELD = re.compile(r"^    (\w+): (\w[\w.\[\]]*)( \| None)?$", re.MULTILINE)


ROWS = {
    statement.row_type.__name__: statement.name.split("/")[0]
    for statement in query.statements.values()
    if statement.row_type and issubclass(statement.row_type, msgspec.Struct)
}


@pytest.mark.parametrize(("row", "noun"), ROWS.items())
def test_each_field_that_may_be_none_or_may_not_is_held_against_the_tree(copy: Copy, row: str, noun: str) -> None:
    """Every field of a row says the contrary."""
    source = copy.text(f"{noun}.py")
    before, head, rest = source.partition(f"class {row}(")
    body, end, after = rest.partition("\n\n\n")
    turned = FIELD.sub(lambda found: f"    {found[1]}: {found[2]}{'' if found[3] else ' | None'}", body)
    users = [name for name, s in query.statements.items() if getattr(s.row_type, "__name__", "") == row]

    changes = {f"{noun}.py": f"{before}{head}{turned}{end}{after}"}
    findings = [finding for name in users for finding in copy.findings(changes, only=name)]

    fields = [found[1] for found in FIELD.finditer(body)]
    assert fields
    for field in fields:
        assert any(f.rule == "nullability" and f"{row}.{field} " in f.problem for f in findings), field


@pytest.mark.parametrize("name", sorted(name for name, s in query.statements.items() if s.header.uses))
def test_each_index_that_a_header_names_is_missed(copy: Copy, name: str) -> None:
    for index in query.statements[name].header.uses:
        drop = f"drop index {index}"
        if index.endswith(("_key", "_pkey")):
            table = (
                index.removesuffix("_pkey")
                if index.endswith("_pkey")
                else re.split("_(?=user_id|key_id|name)", index)[0]
            )
            drop = f"alter table {table} drop constraint {index} cascade"
        findings = copy.findings({}, drop, only=name)
        line = query.statements[name].header.lines["uses"]
        missing = any(f.line == line and f.problem.startswith(f"there is no index {index}") for f in findings)
        # «on conflict» cannot even be prepared without its index.
        assert missing or [f.rule for f in findings][:1] == ["prepare"], index


@pytest.mark.parametrize("name", sorted(query.statements))
def test_each_column_in_another_place_is_found(copy: Copy, name: str) -> None:
    """Of each statement that gives several columns, the first two fields change places."""
    noun = name.split("/", maxsplit=1)[0]
    row = query.statements[name].row_type
    if row is None or not issubclass(row, msgspec.Struct) or len(row.__struct_fields__) < 2:
        return
    source = copy.text(f"{noun}.py")
    first, second = itertools.islice(FIELD.finditer(source, source.index(f"class {row.__name__}(")), 2)
    between = source[first.end() : second.start()]
    text = source[: first.start()] + second[0] + between + first[0] + source[second.end() :]

    findings = copy.findings({f"{noun}.py": text}, only=name)

    assert (f"sql/{name}.sql", query.statements[name].header.lines["returns"], "columns") in {
        (f.path, f.line, f.rule) for f in findings
    }


GRANTS = [
    (number, line)
    for number, line in enumerate((query.folder() / "grants.txt").read_text().splitlines(), 1)
    if line and not line.startswith("--")
]


@pytest.fixture(scope="module")
def granted(connection: psycopg.Connection) -> list[str]:
    """What the database grants."""
    return grants.snapshot(connection)


@pytest.mark.parametrize(("number", "line"), GRANTS)
def test_each_line_of_the_grants_is_held_against_the_database(
    copy: Copy, granted: list[str], number: int, line: str
) -> None:
    """Once the file is without it, once the database."""
    source = copy.text("grants.txt")
    place = copy.folder / "grants.txt"
    grant = line.partition("  --")[0]
    with copy.use():
        [lost] = grants.grants([given for given in granted if given != grant], copy.needs)
        place.write_text(source.replace(f"{line}\n", "", 1))
        try:
            [extra] = grants.grants(granted, copy.needs)
        finally:
            place.write_text(source)

    assert (lost.line, lost.rule) == (number, "grants")
    assert f"the database is without «{grant}»" in lost.problem
    assert extra.line < number
    assert f"the database has «{grant}»" in extra.problem


REVOKED = re.compile(r"(\w+): (\w+ (?:\([^)]*\) )?)(?:on )?((?:schema )?\w+)(\(.*\))?")


@pytest.mark.parametrize("line", [line for _, line in GRANTS if line.startswith("crafely") and "  --" not in line])
def test_each_grant_without_a_reason_is_needed(connection: psycopg.Connection, line: str) -> None:
    """Without it a statement of the role is refused."""
    found = REVOKED.fullmatch(line)
    assert found is not None
    role, privilege, thing, arguments = found.groups()
    kind = "function " if arguments else ""
    revoke = f"revoke {privilege}on {kind}{thing} from {role}"
    if thing.startswith("schema"):
        revoke += ", public"
    refused = []
    with connection.transaction(force_rollback=True):
        connection.execute(revoke.encode())
        for name, statement in query.statements.items():
            if role in statement.header.roles:
                try:
                    plans.explain(connection, statement, role)
                except psycopg.errors.ProgrammingError:  # with no right to the schema, names are not there
                    refused.append(name)
    assert refused


def test_a_table_that_is_not_filled_is_found(copy: Copy) -> None:
    found = copy.findings({}, "create table notes (id text primary key); alter table notes enable row level security")

    assert [(f.path, f.rule) for f in found] == [("crafely/db/filling", "filling"), ("sql/grants.txt", "grants")]
    assert "has 0 rows of notes" in found[0].problem


def test_joins_and_variables_say_the_same_of_nulls(connection: psycopg.Connection) -> None:
    """Before PostgreSQL 16 variables do not say what an outer join does to them, so the joins are asked."""
    source = (
        "select {} from packages a left join packages b on b.id = a.id"
        " full join (packages c join packages d on d.id = c.id) on c.id = b.id"
        " right join packages e on e.id = d.id cross join packages f"
    )
    names = [f"{table}.{column}" for table in "abcdef" for column in ("name", "description")]
    with connection.transaction(force_rollback=True):
        text = source.format(", ".join(names)).encode()
        described = plans.prepare(connection, text)
        read = tree.read(connection, described, text)
    scope = tree.Scope(read, facts.read(connection))
    by_variables = Nullability(scope, set()).columns()
    for node in nodes.walk(read):
        if isinstance(node, dict):
            node.pop("varnullingrels", None)
    by_joins = Nullability(scope, set()).columns()

    assert by_joins == by_variables
    assert [name for name, null in zip(names, by_joins, strict=True) if not null] == ["e.name", "f.name"]


def test_a_finding_is_one_line(copy: Copy) -> None:
    [finding] = copy.findings(
        {"threads/get": copy.text("threads/get").replace("from threads", "from thread")}, only="threads/get"
    )

    assert str(finding) == f"{finding.path}:{finding.line}: {finding.rule}: {finding.problem}"
    assert "\n" not in str(finding)


def test_a_finding_is_plain_data() -> None:
    finding = Finding("sql/agents/get.sql", 3, "columns", "too few")

    assert msgspec.json.encode(finding) == (
        b'{"path":"sql/agents/get.sql","line":3,"rule":"columns","problem":"too few"}'
    )


@pytest.mark.parametrize("stray", ["agents/forgotten.sql", "agents/get.sql~", "notes.txt", "nobody/get.sql"])
def test_a_file_that_no_function_claims_is_found(copy: Copy, stray: str) -> None:
    path: Path = copy.folder / stray
    path.parent.mkdir(exist_ok=True)
    path.write_text("select 1;\n")
    try:
        with copy.use():
            assert [(f.path, f.line, f.rule) for f in style.orphans()] == [(f"sql/{stray}", 1, "signature")]
    finally:
        path.unlink()


def test_a_signature_whose_file_is_gone_is_found(copy: Copy) -> None:
    path = copy.folder / "threads" / "get.sql"
    kept = path.read_bytes()
    path.unlink()
    try:
        assert ("sql/threads/get.sql", 1, "signature") in {(f.path, f.line, f.rule) for f in copy.findings({})}
    finally:
        path.write_bytes(kept)
