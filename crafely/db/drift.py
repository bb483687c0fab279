"""Drift: how a live database differs from what its migrations make of an empty one. Nothing is ever changed there."""

from pathlib import Path

import msgspec

from crafely.db import migrate, scratch, snapshot
from crafely.db.snapshot import Difference


class Drift(msgspec.Struct, frozen=True):
    """The answer. ``not_compared`` says why there is none; ``note`` what to keep in mind with the differences."""

    differences: list[Difference] = []
    not_compared: str | None = None
    note: str | None = None


def why_not(history: list[migrate.Migration]) -> str | None:
    """Why a database with this history cannot be compared; None where it can."""
    if missing := [one.id for one in history if one.state == "missing"]:
        return f"{missing[0]} is applied and has no file here, so what it made is not known"
    if all(one.state == "pending" for one in history):
        return "no migration is applied"
    return None


def drift(url: str, server: str, folder: Path | None = None) -> Drift:
    """Names every object of the database at ``url`` that its applied migrations do not account for.

    ``server`` is the URL of another server, where a database is made, migrated as far as this one, and dropped again.
    The live database is read in a session that could not write, and must have nothing but what migrations make: months
    that housekeeping made or dropped are no difference, nor are other schemas, extensions or more roles. Raises
    MigrationError and psycopg.Error.
    """
    history = migrate.status(url, folder)
    if reason := why_not(history):
        return Drift(not_compared=reason)
    applied = [one.id for one in history if one.state != "pending"]
    found, theirs = _look(url)
    with scratch.database(server) as made:
        migrate.up(made, folder, to=applied[-1])
        wanted, ours = _look(made)
    schemas = {one.schema for one in wanted}
    found = [one for one in found if one.schema in schemas]
    differences = snapshot.compare(snapshot.for_months_of(wanted, found), snapshot.same_months(found))
    note = None
    if differences and theirs != ours:
        note = f"the database is PostgreSQL {theirs}, compared was with {ours}: their words may differ here and there"
    return Drift(differences, note=note)


def _look(url: str) -> tuple[list[snapshot.Object], int]:
    with migrate.reading(url) as connection:
        return snapshot.take(connection), connection.info.server_version // 10000
