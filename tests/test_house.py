"""The plan of the house: who may import whom, where SQL lives, and how long things may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from crafely.store import __all__ as nouns

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "crafely"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LAB = PACKAGE / "bench" / "statements"
SQL_FILES = sorted([*(ROOT / "sql").rglob("*.sql"), *(ROOT / "migrations").glob("*.sql"), *LAB.glob("*.sql")])

# A part may import itself and what stands below it. The bench and the API stand side by side.
LAYERS = {
    "keyring": 0,
    "signals": 0,
    "": 0,
    "config": 1,
    "db": 2,
    "store": 3,
    "auth": 4,
    "api": 5,
    "bench": 5,
    "cli": 6,
    "__main__": 7,
}

every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The dotted names of what a module imports: «from a import b» gives a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    """Of crafely.api.agents: api."""
    part = (*module.split("."), "")[1]
    return part if part in LAYERS else ""


def texts(path: Path) -> Iterator[str]:
    """The texts in a module that are no docstrings."""
    module = tree(path)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and id(node) not in docstrings and isinstance(node.value, str | bytes):
            yield node.value if isinstance(node.value, str) else node.value.decode(errors="replace")


def test_there_is_a_house_to_look_at() -> None:
    assert len(MODULES) > 30
    assert len(SQL_FILES) > 60
    assert {part_of(name_of(path)) for path in MODULES} <= set(LAYERS)


@every_module
def test_imports_point_downward_only(path: Path) -> None:
    own = part_of(name_of(path))
    for imported in imports(path):
        if imported.startswith("crafely."):
            other = part_of(imported)
            assert other == own or LAYERS[other] < LAYERS[own], f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("part", ["store", "api"])
def test_nouns_never_import_each_other(part: str) -> None:
    own = {f"crafely.{part}.{noun}" for noun in [*nouns, "me"]}
    for path in (PACKAGE / part).glob("*.py"):
        if name_of(path) in own:
            assert own & set(imports(path)) == set(), path.name


def test_the_database_layer_knows_no_http_and_no_table() -> None:
    for path in (PACKAGE / "db").glob("*.py"):
        assert not any(name.split(".")[0] in {"aiohttp", "gunicorn"} for name in imports(path)), path.name
        words = {word for text in texts(path) for word in re.findall(r"\w+", text)}
        assert words & (set(nouns) - {"usage", "monitor"}) == set(), path.name


def test_the_store_is_signatures_and_nothing_else() -> None:
    for noun in nouns:
        path = PACKAGE / "store" / f"{noun}.py"
        assert {name.split(".")[0] for name in imports(path)} <= {"crafely", "datetime", "decimal", "msgspec"}
        for node in tree(path).body:
            if isinstance(node, ast.AsyncFunctionDef):
                assert [ast.unparse(d) for d in node.decorator_list] == ["sql"], node.name
                assert [type(statement) for statement in node.body] == [ast.Expr], f"{node.name} has logic in it"
            else:
                assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.ClassDef), ast.unparse(node)


@pytest.mark.parametrize(("folder", "reader"), [("sql", "db/query.py"), ("migrations", "db/migrate.py")])
def test_one_module_alone_reads_each_folder(folder: str, reader: str) -> None:
    found = [str(path.relative_to(PACKAGE)) for path in MODULES if folder in texts(path)]
    assert found == [reader]


def test_in_the_api_only_two_modules_know_the_errors_of_the_database() -> None:
    """One turns them into answers, one says whether the database can be reached."""
    knowing = {p.stem for p in (PACKAGE / "api").glob("*.py") if any(i.startswith("psycopg") for i in imports(p))}
    assert knowing == {"problems", "services"}


def test_the_lab_has_files_for_its_statements_and_runs_each_of_them() -> None:
    named = {text for path in (PACKAGE / "bench").glob("*.py") for text in texts(path)}
    assert {path.stem for path in LAB.iterdir()} - named == set()


SQL_TEXT = re.compile(
    r"\s*(select\s|insert\s+into|update\s+\w+\s+set|delete\s+from|with\s+\w+\s+as|(create|alter|drop)\s+\w+\s|grant\s|set\s+\w+\s*=)",
    re.IGNORECASE,
)
# Not a statement of the program but of its embedded server's first start.
PLUMBING = {"set client_min_messages = error", "create extension if not exists pg_stat_statements"}


@every_module
def test_no_statement_is_written_in_python(path: Path) -> None:
    if part_of(name_of(path)) != "db":
        assert [text for text in texts(path) if SQL_TEXT.match(text) and text not in PLUMBING] == []


# Whose servers are their own, reached through a socket; the bench asks for encryption where it is given a URL.
OWN_SERVERS = {"cli.check", "cli.serve", "db.against", "db.cluster", "db.filled", "db.migration_lint"}
OWN_SERVERS |= {"db.migration_verify", "db.scratch", "db.traffic", "bench.bare", "bench.growth", "bench.revoke"}


@every_module
def test_whoever_connects_asks_for_encryption(path: Path) -> None:
    connecting = {"psycopg.connect", "psycopg.AsyncConnection.connect", "Connection.connect"}
    connecting |= {"AsyncConnectionPool", "psycopg_pool.AsyncConnectionPool"}
    for node in ast.walk(tree(path)):
        called = ast.unparse(node.func).partition("[")[0] if isinstance(node, ast.Call) else ""
        if called in connecting and name_of(path).removeprefix("crafely.") not in OWN_SERVERS:
            assert "secured" in path.read_text(), f"{called}: a remote server is asked with secured(url) of db/tls.py"


def test_one_noun_everywhere() -> None:
    def stems(folder: str, pattern: str) -> set[str]:
        return {path.stem.removeprefix("test_") for path in (ROOT / folder).glob(pattern)}

    assert {path.name for path in (ROOT / "sql").iterdir() if path.is_dir()} == {*nouns, "scale"}
    assert stems("crafely/store", "[!_]*.py") == set(nouns)
    assert stems("tests/store", "test_*.py") >= set(nouns)
    assert stems("crafely/api", "*.py") >= set(nouns)
    assert stems("tests/api", "test_*.py") >= set(nouns)


@every_module
def test_modules_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_short(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, node.name


@pytest.mark.parametrize("path", SQL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sql_is_lowercase_with_short_lines_and_no_tabs(path: Path) -> None:
    text = path.read_text()
    assert text.endswith("\n")
    assert "\t" not in text
    assert [line for line in text.splitlines() if len(line) > 120 or line != line.rstrip()] == []
    bare = re.sub(r"--.*|'[^']*'", "", text)
    assert re.findall(r"\b(SELECT|FROM|WHERE|INSERT|UPDATE|DELETE|CREATE|TABLE|AND|NOT|NULL|BEGIN)\b", bare) == []
