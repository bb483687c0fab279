"""The rules that the files of migrations keep; no database."""

from pathlib import Path

import pytest

from crafely.db.migrate import folder
from crafely.db.migration_files import MigrationError, create, load

OK = "-- Why.\nselect 1;\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two good migrations, a and b."""
    for name in "0001.a", "0002.b":
        (tmp_path / f"{name}.sql").write_text(OK)
        (tmp_path / f"{name}.rollback.sql").write_text(OK)
    return tmp_path


def checksums(folder: Path) -> dict[str, str]:
    return {script.id: script.hash for script in load(folder)}


BAD_FILES: dict[str, tuple[dict[str, str | bytes], str]] = {
    "name": ({"0003.Not_A_Slug.sql": OK}, r"0003\.Not_A_Slug\.sql: a migration is NNNN"),
    "stray file": ({"0003.c.py": "step()"}, r"0003\.c\.py: a migration is NNNN"),
    "other digits": ({"٠٠٠٣.c.sql": OK}, "a migration is NNNN"),
    "gap": ({"0004.d.sql": OK, "0004.d.rollback.sql": OK}, r"0004\.d\.sql: should be number 0003"),
    "double": ({"0002.bb.sql": OK, "0002.bb.rollback.sql": OK}, r"0002\.bb\.sql: should be number 0003"),
    "no twin": ({"0003.c.sql": OK}, r"0003\.c\.sql: 0003\.c\.rollback\.sql is missing"),
    "twin alone": ({"0003.c.rollback.sql": OK}, r"0003\.c\.rollback\.sql: 0003\.c\.sql is missing"),
    "empty": ({"0003.c.sql": "", "0003.c.rollback.sql": OK}, r"0003\.c\.sql: begins with"),
    "empty twin": (
        {"0003.c.sql": OK, "0003.c.rollback.sql": "-- Nothing; to do.\n"},
        "rollback.sql: holds no statement",
    ),
    "no header": ({"0003.c.sql": "-- depends: 0001.a\nselect 1;", "0003.c.rollback.sql": OK}, "lines that say why"),
    "late header": ({"0003.c.sql": "select 1;\n-- Why.\n", "0003.c.rollback.sql": OK}, "lines that say why"),
    "unknown depends": ({"0003.c.sql": "-- depends: 0009.z\n" + OK, "0003.c.rollback.sql": OK}, r"depends on 0009\.z"),
    "later depends": ({"0003.c.sql": "-- depends: 0003.c\n" + OK, "0003.c.rollback.sql": OK}, r"depends on 0003\.c"),
    "misspelt": ({"0003.c.sql": "-- transactonal: false\n" + OK, "0003.c.rollback.sql": OK}, "is no directive"),
    "capital": ({"0003.c.sql": "-- Transactional: false\n" + OK, "0003.c.rollback.sql": OK}, "is no directive"),
    "value": ({"0003.c.sql": "-- transactional: no\n" + OK, "0003.c.rollback.sql": OK}, "is true or false, not 'no'"),
    "late": ({"0003.c.sql": OK + "-- transactional: false\n", "0003.c.rollback.sql": OK}, "below the first statement"),
    "in the twin": ({"0003.c.sql": OK, "0003.c.rollback.sql": "-- transactional: false\n" + OK}, "count for both"),
    "latin1": ({"0003.c.sql": b"-- Why.\n-- caf\xe9", "0003.c.rollback.sql": OK}, r"0003\.c\.sql:2: not UTF-8"),
    "mark": ({"0003.c.sql": "\ufeff" + OK, "0003.c.rollback.sql": OK}, "no byte order mark"),
    "nul": ({"0003.c.sql": OK + "\0drop", "0003.c.rollback.sql": OK}, "no NUL"),
    "lone return": ({"0003.c.sql": b"-- Why.\n--\rcommit;\nselect 1", "0003.c.rollback.sql": OK}, "carriage return"),
    "psql": ({"0003.c.sql": OK + "\\d a\n", "0003.c.rollback.sql": OK}, "sql:3: has a backslash"),
    "gexec": ({"0003.c.sql": "-- Why.\nselect 1 \\gexec\n", "0003.c.rollback.sql": OK}, "backslash command"),
    "begin": (
        {"0003.c.sql": "-- Why.\nbegin; select 1; commit;", "0003.c.rollback.sql": OK},
        "sql:2: `begin`: a migration opens",
    ),
    "commit": ({"0003.c.sql": OK + "/* x */ COMMIT;", "0003.c.rollback.sql": OK}, "`COMMIT`: a migration opens"),
    "end": ({"0003.c.sql": OK + "end;", "0003.c.rollback.sql": OK}, "sql:3: `end`: a migration opens"),
    "stdin": ({"0003.c.sql": "-- Why.\ncopy a\nfrom stdin;", "0003.c.rollback.sql": OK}, "there is no input"),
    "two statements": (
        {"0003.c.sql": "-- Why.\n-- transactional: false\nselect 1; select 2;", "0003.c.rollback.sql": OK},
        r"0003\.c\.sql:3: 2 statements",
    ),
    "two back": (
        {"0003.c.sql": "-- transactional: false\n" + OK, "0003.c.rollback.sql": OK + "select 2"},
        r"0003\.c\.rollback\.sql:3: 2 statements",
    ),
}


@pytest.mark.parametrize(("bad", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(files: Path, bad: dict[str, str | bytes], message: str) -> None:
    for name, text in bad.items():
        (files / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MigrationError, match=message) as caught:
        load(files)
    assert "\n" not in str(caught.value)


def test_good_headers_are_read(files: Path) -> None:
    header = "-- Why: see https://example.org, a::b and 12:30.\n\n-- depends: 0001.a 0002.b\n-- transactional: false\n"
    (files / "0003.c.sql").write_text(header + "select ';commit;' -- one;\n;")
    (files / "0003.c.rollback.sql").write_text(OK)
    (files / "README.md").write_text("For people.")
    (files / ".0003.c.sql.swp").write_text("An editor's.")
    assert [(script.id, script.transactional) for script in load(files)] == [
        ("0001.a", True),
        ("0002.b", True),
        ("0003.c", False),
    ]


def test_a_folder_that_is_empty_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="no migration here"):
        load(tmp_path)
    with pytest.raises(MigrationError, match="No such file"):
        load(tmp_path / "nowhere")


def test_new_writes_a_pair_that_is_refused_until_it_is_filled_in(files: Path) -> None:
    up, down = create(files, "agents-archive")
    assert (up.name, down.name) == ("0003.agents-archive.sql", "0003.agents-archive.rollback.sql")
    with pytest.raises(MigrationError, match=r"0003\.agents-archive\.sql: the header is not filled in"):
        load(files)
    up.write_text("-- Why.\nselect 1;")
    with pytest.raises(MigrationError, match=r"archive\.rollback\.sql: the header is not filled in"):
        load(files)
    down.write_text("-- Back.\nselect 1;")
    assert list(checksums(files)) == ["0001.a", "0002.b", "0003.agents-archive"]


@pytest.mark.parametrize("name", ["", "Agents", "a_b", "a--b", "-a", "../a", "a.b", "a" * 61])
def test_new_refuses_a_name_of_another_shape(files: Path, name: str) -> None:
    before = sorted(files.iterdir())
    with pytest.raises(MigrationError, match="a name is small letters"):
        create(files, name)
    assert sorted(files.iterdir()) == before


def test_the_checksum_is_of_the_content_whatever_the_line_ends(files: Path) -> None:
    before = checksums(files)
    path = files / "0001.a.sql"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert checksums(files) == before
    path.write_text(path.read_text() + "\n")
    assert checksums(files)["0001.a"] != before["0001.a"]
    assert checksums(files)["0002.b"] == before["0002.b"]


def test_the_shipped_migrations_keep_their_own_rules() -> None:
    assert load(folder())[0].id.startswith("0001.")
