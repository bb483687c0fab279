"""What one user should see: the same as the server, kept by the client from the answers that it was given."""

import time
from collections import Counter, defaultdict, deque
from decimal import Decimal
from typing import Any

# How long another worker may go on believing what a key was: it is told in some milliseconds, on an idle machine.
GRACE_SECONDS = 10
# The newest records, which a list is compared with.
NEWEST = 100
# What lists give of each.
AGENT = ("id", "name", "createdAt", "updatedAt")
THREAD = ("id", "agentId", "name", "storageId", "model", "createdAt", "updatedAt")
# What the server changes by itself, some seconds after a key was used.
UNSTEADY = ("lastUsedAt", "updatedAt")

Body = dict[str, Any]


class Key:
    """A key that was made, and what it was before: another worker may not have heard of the change."""

    def __init__(self, body: Body) -> None:
        # A repetition of the request that made it is answered without.
        self.token: str = body.pop("key", None) or ""
        body.pop("usageId", None)
        self.body = body
        self._before: list[tuple[float, str, tuple[str, ...]]] = []

    @property
    def state(self) -> tuple[str, tuple[str, ...]]:
        """The code that verifying it gives, and its permissions."""
        return "VALID" if self.body["active"] else "REVOKED", tuple(self.body["permissions"])

    def change(self, **changes: Any) -> None:
        self._before.append((time.monotonic(), *self.state))
        self.body |= changes

    def states(self, asked: float) -> list[tuple[str, tuple[str, ...]]]:
        """What it may be taken for by an answer to a question that was asked at a moment."""
        recent = [(code, permissions) for at, code, permissions in self._before if at > asked - GRACE_SECONDS]
        return [self.state, *recent]


class Rows:
    """The agents or threads of a user: all that were made, in that order, and which of them are deleted."""

    def __init__(self) -> None:
        self.bodies: dict[str, Body] = {}
        self.deleted: set[str] = set()

    @property
    def live(self) -> list[Body]:
        """Newest first."""
        return [body for id_, body in reversed(self.bodies.items()) if id_ not in self.deleted]


class Sums:
    """What the usage of a user adds up to, by provider and model."""

    def __init__(self) -> None:
        self.groups: defaultdict[tuple[str | None, str], Counter[str]] = defaultdict(Counter)
        self.costs: defaultdict[tuple[str | None, str], Decimal] = defaultdict(Decimal)

    def add(self, record: Body) -> None:
        group = (record["provider"], record["model"])
        self.groups[group] += Counter(records=1, tokensIn=record["tokensIn"], tokensOut=record["tokensOut"])
        self.costs[group] += Decimal(record["cost"])

    def check(self, rows: list[Body]) -> None:
        """Compares with what /v1/usage/stats says."""
        assert {(row["provider"], row["model"]) for row in rows} == self.groups.keys()
        assert len(rows) == len(self.groups)
        for row in rows:
            group = (row["provider"], row["model"])
            assert {name: row[name] for name in ("records", "tokensIn", "tokensOut")} == {
                name: self.groups[group][name] for name in ("records", "tokensIn", "tokensOut")
            }, group
            assert Decimal(row["cost"]) == self.costs[group], group

    def check_days(self, rows: list[Body]) -> None:
        """Compares with what /v1/usage/daily says; the days are added up."""
        for name in ("records", "tokensIn", "tokensOut"):
            assert sum(row[name] for row in rows) == sum(group[name] for group in self.groups.values()), name
        assert sum((Decimal(row["cost"]) for row in rows), Decimal()) == sum(self.costs.values(), Decimal())


class Mirror:
    """All of one user."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.agents = Rows()
        self.threads = Rows()
        self.sums = Sums()
        # Every record that was acknowledged; the newest of them in their order; and the last events, to be repeated.
        self.usage_ids: set[str] = set()
        self.newest: deque[str] = deque(maxlen=NEWEST)
        self.events: deque[tuple[Body, str]] = deque(maxlen=50)

    def record(self, record: Body, id_: str) -> None:
        assert id_ not in self.usage_ids
        self.usage_ids.add(id_)
        self.newest.append(id_)
        self.sums.add(record)
        if "eventId" in record:
            self.events.append((record, id_))


def steady(body: Body) -> Body:
    """A key without what changes by itself."""
    return {name: value for name, value in body.items() if name not in UNSTEADY}


def summary(body: Body, names: tuple[str, ...]) -> Body:
    return {name: body[name] for name in names}
