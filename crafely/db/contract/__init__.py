"""What ``crafely check`` proves: that every SQL file, its header and its signature agree, asked of a real database.

    facts.py        what the catalogue says
    signature.py    parameters, columns, nullability, cardinality
    tree.py         the server's own parse tree (nodes.py reads it), on which the last two stand
    plan.py         the indexes that the header names, the tables that may be read from end to end
    tenancy.py      statements of users name the user
    distribution.py statements on tables that may be spread over servers name the user, too
    replica.py      what a standby may answer writes nothing and locks nothing
    grants.py       what each role may do, against a reviewed file and against what statements need
    style.py        how files are written

The server prepares each statement as each of its roles, describes it
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY, message Describe) and explains it.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg

from crafely.db import plans, query
from crafely.db.contract import facts, fix, grants, plan, signature, style, tree
from crafely.db.contract.distribution import distribution
from crafely.db.contract.facts import Facts
from crafely.db.contract.findings import Finding, at_offset, at_text
from crafely.db.contract.replica import replica
from crafely.db.contract.tenancy import tenancy
from crafely.db.contract.tree import Scope
from crafely.db.plans import Plan
from crafely.db.query import Statement

__all__ = ["Finding", "check", "fix_headers", "write_grants"]


def check(
    connection: psycopg.Connection[Any], only: str | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Holds the statements that the store declares against a database that is migrated and filled (filled.py).

    Takes a connection of a login that may take on every role, and a statement's name to check that one alone (then
    grants and stray files are not looked at). Leaves nothing behind. Gives the findings, in the order of the files;
    none means that all agree.
    """
    known = facts.read(connection)
    # A field that may be None is judged by all the statements that give its row.
    seen: dict[signature.Field, bool] = {}
    needs = grants.Needs(known)
    findings: list[Finding] = []
    for name, statement in sorted(query.statements.items()):
        if only is not None and name != only and statement.row_type is not query.statements[only].row_type:
            continue
        statement_check = _Check(connection, statement, known, seen, needs)
        if only is None or name == only:
            findings += statement_check.findings()
            on_progress(name)
        else:
            statement_check.note_nulls()
    findings += signature.needless_none({f: n for f, n in seen.items() if only is None or f[0] is _row(only)})
    if only is None:
        findings += style.orphans()
        findings += plan.empty(known)
        findings += grants.grants(grants.snapshot(connection), needs)
    return sorted(dict.fromkeys(findings), key=lambda finding: (finding.path, finding.line))


def fix_headers(connection: psycopg.Connection[Any], only: str | None = None) -> list[str]:
    """Writes into the files what a machine can know of their headers (fix.py). Gives the names of those it changed.

    Files that the server refuses stay as they are.
    """
    known = facts.read(connection)
    changed = []
    for name, statement in list(query.statements.items()):
        if only is not None and name != only:
            continue
        try:
            fixed = _fixed(connection, statement, known)
        except psycopg.Error:
            continue  # the check says why
        if fixed is not statement:
            query.statements[name] = fixed
            changed.append(name)
    return sorted(changed)


def _fixed(connection: psycopg.Connection[Any], statement: Statement, known: Facts) -> Statement:
    explained = [plans.explain(connection, statement, role) for role in statement.header.roles]
    with plans.as_role(connection, statement.header.roles[0]):
        described = plans.prepare(connection, statement.text)
    with connection.transaction(force_rollback=True):
        scope = Scope(tree.read(connection, described, statement.text), known)
    return fix.rewrite(statement, fix.uses(statement, explained, known), signature.undecided(statement, scope))


def write_grants(connection: psycopg.Connection[Any]) -> None:
    """Writes ``sql/grants.txt`` as the database has it, to be reviewed."""
    grants.write(grants.snapshot(connection))


def _row(name: str) -> Any:
    return query.statements[name].row_type


class _Check:
    """One statement."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        statement: Statement,
        known: Facts,
        seen: dict[signature.Field, bool],
        needs: grants.Needs,
    ) -> None:
        self._connection = connection
        self._statement = statement
        self._known = known
        self._seen = seen
        self._needs = needs

    def findings(self) -> list[Finding]:
        """All of them."""
        if not self._statement.path.is_file():
            return []  # style.orphans says so
        findings = list(style.style(self._statement))
        described = None
        for role in self._statement.header.roles:
            try:
                with plans.as_role(self._connection, role):
                    described = plans.prepare(self._connection, self._statement.text)
                    explained = plans.explain_prepared(self._connection, described, partitions=self._known.roots)
            except psycopg.Error as error:
                findings.append(self._refused(role, error))
                continue
            findings += plan.indexes(self._statement, explained, self._known, role, self._unguarded)
            findings += plan.scans(self._statement, explained, self._known, role)
        if described is not None:
            findings += self._signature(described)
        return findings

    def _unguarded(self) -> Plan:
        """The plan that it would have without row-level security, as the login, who is above it."""
        return plans.explain(self._connection, self._statement, self._connection.info.user)

    def note_nulls(self) -> None:
        """Only notes what the statement gives null for."""
        with suppress(psycopg.Error):  # its own check says why
            with plans.as_role(self._connection, self._statement.header.roles[0]):
                described = plans.prepare(self._connection, self._statement.text)
            list(self._signature(described))

    def _signature(self, described: psycopg.pq.abc.PGresult) -> Iterator[Finding]:
        statement, types = self._statement, self._known.types
        yield from signature.parameters(statement, described, types)
        mismatches = list(signature.columns(statement, described, types))
        yield from mismatches
        try:
            with self._connection.transaction(force_rollback=True):
                read = tree.read(self._connection, described, statement.text)
        except psycopg.Error as error:
            problem = f"the server gives no parse tree of it: {error.diag.message_primary}"
            yield at_text(statement, "", "prepare", problem)
            return
        for role in statement.header.roles:
            self._needs.add(role, read)
        yield from tenancy(statement, read, self._known)
        yield from distribution(statement, read, self._known)
        yield from replica(statement, read, self._known)
        scope = Scope(read, self._known)
        yield from signature.rows(statement, scope)
        if not mismatches:
            yield from signature.nulls(statement, scope, self._seen)

    def _refused(self, role: str, error: psycopg.Error) -> Finding:
        problem = f"as {role}: {error.diag.message_primary or str(error).strip()}"
        return at_offset(self._statement, int(error.diag.statement_position or 1) - 1, "prepare", problem)
