"""``crafely audit``: hold the audit trail against its seals. Only reads."""

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crafely.cli.target import connected, require_schema, target
from crafely.config import Settings, load
from crafely.db.session import Session
from crafely.store import audit_log
from crafely.store.audit_log import Harm, Unsealed, Verified

# Seals that one statement verifies: of 10,000 rows each at most, some seconds.
SEALS = 50
STATEMENT_SECONDS = 3600
# The most rows of one seal that are named, and the most findings that are shown.
MAX_ROWS = 100
MAX_FINDINGS = 1000

_DIGEST = re.compile("[0-9a-f]{64}")


class Finding(msgspec.Struct, frozen=True, rename="camel"):
    """What is wrong, in a sentence, and with which seal (None: with none). ``rows`` are ids, as far as known."""

    finding: str
    seal: int | None = None
    rows: list[int] = []


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """What was verified, and every finding. ``head`` is the digest of the last seal: keep it somewhere else."""

    seals: int
    rows: int
    head: str | None
    unsealed: Unsealed
    findings: list[Finding]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser("audit", help="verify the audit trail", description=__doc__)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    verify = actions.add_parser(
        "verify", help="find every row that was altered, removed or inserted after it was sealed; exit code 1 if any"
    )
    verify.add_argument(
        "--head",
        type=_digest,
        metavar="HASH",
        help="a head that was kept elsewhere (housekeeping logs them, a backup notes one): it must be in the chain",
    )
    verify.add_argument("--json", action="store_true", help="for programs")
    verify.set_defaults(run=run)


def _digest(argument: str) -> str:
    if not _DIGEST.fullmatch(argument.lower()):
        raise argparse.ArgumentTypeError("expected 64 hexadecimal digits")
    return argument.lower()


def run(arguments: argparse.Namespace) -> int:
    """Verifies, and shows what was found; exit code 1 when there is anything."""
    settings = load()
    with target(settings) as found:
        require_schema(found)
        report = asyncio.run(_verify(settings, found.url, arguments.head))
    if arguments.json:
        print(msgspec.json.encode(report).decode())
        return 1 if report.findings else 0
    for finding in report.findings:
        print(finding.finding)
    if not report.findings:
        print(f"{report.rows} rows are as {report.seals} seals have them; the head is {report.head or 'none yet'}")
    if report.unsealed.row_count:
        print(f"{report.unsealed.row_count} rows since {report.unsealed.since} are not sealed yet", file=sys.stderr)
    return 1 if report.findings else 0


async def _verify(settings: Settings, url: str, head: str | None) -> Report:
    # It may read everything, and write nothing.
    async with connected(settings, url, "crafely_backup", statement_timeout=STATEMENT_SECONDS) as database:
        return await verify(database.session("crafely_backup"), head)


async def verify(session: Session, head: str | None = None) -> Report:
    """Verifies a whole chain, from the first seal to the last, and whether a head that was kept elsewhere is in it.

    Takes a session of crafely_backup. Each statement sees one moment, so housekeeping may seal and drop meanwhile.
    """
    last = await audit_log.head(session)
    findings: list[Finding] = []
    seals = rows = at = 0
    digest = None
    known = head is None
    with _progress(last.id if last else 0) as advance:
        while verified := await audit_log.verify(session, after_id=at, take=SEALS):
            for seal in verified:
                known = known or seal.digest == head
                if len(findings) < MAX_FINDINGS:
                    findings += await _findings(session, seal)
                seals, rows = seals + 1, rows + seal.found
            at, digest = verified[-1].id, verified[-1].digest
            advance(at)
    if not known:
        findings.append(Finding("the head that was kept is not in the chain: it was recomputed, or its end cut off"))
    return Report(seals, rows, digest, await audit_log.unsealed(session), findings)


async def _findings(session: Session, seal: Verified) -> list[Finding]:
    """What is wrong with a seal and with its rows; mostly nothing."""
    findings = []
    expected = (seal.last_id or 0) + 1
    if seal.id != expected:
        findings.append(Finding(f"{_named('seal', range(expected, seal.id))} removed"))
    elif not seal.follows:
        findings.append(Finding(f"seal {seal.id} is not as it was made, after seal {seal.id - 1}", seal.id))
    if seal.rows_match:
        return findings
    harms = await audit_log.compare(session, id=seal.id, take=MAX_ROWS + 1)
    for change, changed in groupby(sorted(harms[:MAX_ROWS], key=lambda harm: harm.change), key=_change):
        ids = [harm.id for harm in changed]
        findings.append(Finding(f"seal {seal.id}: {_named('row', ids)} {change}", seal.id, ids))
    if len(harms) > MAX_ROWS:
        findings.append(Finding(f"seal {seal.id}: more rows than these are not as they were sealed", seal.id))
    elif not harms:
        count = f"{seal.found} of {seal.row_count}"
        findings.append(Finding(f"seal {seal.id}: its rows ({count}) are not those that it was made for", seal.id))
    return findings


def _change(harm: Harm) -> str:
    return harm.change


def _named(noun: str, ids: Iterable[int]) -> str:
    """Some ids in a sentence: «row 7 was», «rows 1–3, 9 were»."""
    ids = sorted(ids)
    # Numbers that follow each other are as far from their places as each other.
    runs = [[one for _, one in run] for _, run in groupby(enumerate(ids), key=lambda pair: pair[1] - pair[0])]
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{noun} {text} was" if len(ids) == 1 else f"{noun}s {text} were"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar for people, to be told the number of the last seal that was verified."""
    columns = (TextColumn("seals"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
