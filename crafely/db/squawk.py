"""squawk, a linter that knows which statements lock whom (https://squawkhq.com), and what we ask of it.

It is a tool for developers, so it may be missing; ``find`` says. Here, and nowhere else, stands which of its rules are
off. In a file, ``-- squawk-ignore RULE`` above a statement lets one finding pass; say why beside it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from crafely.db.contract import Finding
from crafely.db.migration_files import MigrationError, Script

# The oldest server that the files run on.
VERSION = "15"
SECONDS = 60

# Off everywhere.
OFF = {
    "adding-field-with-default": "our own rule «rewrite» asks the server which defaults are volatile",
    "prefer-bigint-over-int": "tokens of a record and requests a minute stay far below two thousand million",
    "prefer-robust-stmts": "a file and its mark are one transaction, and «if not exists» takes a bad index for good",
    "prefer-text-field": "ids keep the source's varchar(255); tests/test_schema.py holds every other column to text",
    "require-lock-timeout": "the runner sets it in its session; a file that sets it is a finding of our own",
    "require-statement-timeout": "filling takes as long as it takes; a statement whose runner is gone is ended",
}
# Off in a rollback: to take away what its migration made is what it is for, and its header says what is lost.
OFF_IN_ROLLBACKS = {
    "adding-not-nullable-field": "what was not null is so again",
    "adding-required-field": "a column that was dropped comes back as it was",
    "ban-drop-column": "the column that the migration added",
    "ban-drop-constraint": "the constraint that the migration added",
    "ban-drop-function": "the function that the migration made",
    "ban-drop-not-null": "what the migration made not null",
    "ban-drop-table": "the table that the migration made",
    "changing-column-type": "the type that it was before",
    "renaming-column": "the name that it had before",
    "renaming-table": "the name that it had before",
    "require-concurrent-index-deletion": "the index went with the table, or its table is as new",
}


def find() -> Path | None:
    """The program: beside the Python that runs, else on the path; None where it is not installed."""
    beside = Path(sys.executable).with_name("squawk")
    found = str(beside) if beside.is_file() else shutil.which("squawk")
    return Path(found) if found else None


def run(program: Path, folder: Path, scripts: Iterable[Script]) -> list[Finding]:
    """What squawk finds in a folder's files. Raises MigrationError when it cannot be run or does not answer."""
    ups: dict[bool, list[Path]] = {True: [], False: []}
    rollbacks: dict[bool, list[Path]] = {True: [], False: []}
    for script in scripts:
        ups[script.transactional].append(folder / f"{script.id}.sql")
        rollbacks[script.transactional].append(folder / f"{script.id}.rollback.sql")
    findings = []
    for files, off in (ups, OFF), (rollbacks, OFF | OFF_IN_ROLLBACKS):
        for transactional, paths in files.items():
            findings += _ask(program, folder, paths, sorted(off), transactional=transactional)
    return findings


def _ask(program: Path, folder: Path, paths: list[Path], off: list[str], *, transactional: bool) -> list[Finding]:
    if not paths:
        return []
    # yoyo's directive decides whether a transaction is around the file.
    around = "--assume-in-transaction" if transactional else "--no-assume-in-transaction"
    command = [str(program), "--reporter=json", f"--pg-version={VERSION}", f"--exclude={','.join(off)}", around]
    try:
        done = subprocess.run(
            [*command, *map(str, paths)], cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise MigrationError(f"{program} does not answer: {error}") from error
    if done.returncode not in (0, 1):
        raise MigrationError(f"{program}: {done.stderr.strip()}")
    return [
        Finding(
            path=f"{folder.name}/{Path(one['file']).name}",
            line=one["line"] + 1,
            rule=one["rule_name"],
            problem=" ".join(f"{one['message']} {one.get('help') or ''}".split()),
        )
        for one in found
    ]
