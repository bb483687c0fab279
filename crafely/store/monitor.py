"""The database about itself, and its housekeeping: ``sql/monitor/``."""

from crafely.db.query import Executor, Row, sql


class Partitions(Row, frozen=True):
    """How many monthly partitions were made."""

    audit_log: int
    usage: int


class AppliedMigration(Row, frozen=True):
    """A migration that the database has had, and the checksum of what was applied."""

    migration_id: str
    migration_hash: str


@sql
async def ensure_partitions(db: Executor, *, months_ahead: int) -> Partitions:
    """Makes the months that usage and the audit trail will need, so many ahead."""


@sql
async def migrations(db: Executor) -> list[AppliedMigration]:
    """The migrations that this database has had, in order."""
