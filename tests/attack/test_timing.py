"""What the time of an answer tells about a key that one does not have: both kinds of wrong key take the same work.

Work is counted among the tests; ``make attack`` measures the time, too, and says whether the two can be told apart.
"""

import math
import statistics
import time

import pytest
from argon2 import PasswordHasher
from rich import box
from rich.table import Table

from crafely.auth import keys
from crafely.config import Settings
from tests.api.conftest import serving
from tests.attack import report
from tests.attack.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = 1000 if report.PRINT else 20


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parameters of every hash that a secret is compared with."""
    counted: list[str] = []
    verify = PasswordHasher.verify

    def counting(self: PasswordHasher, hash: str, password: str) -> bool:
        counted.append(hash.rpartition("$")[0].rpartition("$")[0])
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", counting)
    return counted


def wrong(world: World, known: bool) -> str:
    """A token that was never shown to the server: with the victim's key id, or with one that nobody has."""
    new = keys.generate("test")
    return keys.token("test", world.victim.token.split("_")[2] if known else new.key_id, new.secret)


@pytest.mark.parametrize("known", [True, False], ids=["known id", "unknown id"])
async def test_a_wrong_key_takes_one_hash_whether_its_id_is_known_or_not(
    world: World, hashes: list[str], known: bool
) -> None:
    for number in range(1, 6):
        by = world.server.with_token(wrong(world, known))
        answer = await world.strike("wrong keys", "GET", "/v1/me", by=by, expect=[401])
        assert answer["detail"] == "Not accepted: there is no such API key."
        assert hashes == ["$argon2id$v=19$m=8,t=1,p=1"] * number


async def test_what_is_answered_does_not_tell_them_apart(world: World) -> None:
    shapes = set()
    for known in (True, False):
        by = world.server.with_token(wrong(world, known))
        answer = await world.strike("wrong keys", "GET", "/v1/me", by=by, expect=[401])
        names = sorted(set(answer.headers) - {"Date"})
        shapes.add((len(answer.raw), answer["code"], answer["detail"], tuple(names)))
    assert len(shapes) == 1


async def test_how_long_it_takes(world: World) -> None:
    """In turn, each with a secret of its own, so that nothing is remembered. Figures; no verdict among the tests.

    With the hashes of the default settings, that of the key that is there as well.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    default = Settings()
    async with serving(world.server.url, world.server.signer, argon2_memory_kib=default.argon2_memory_kib) as server:
        there = (await server.signed_in("mallory").post("/v1/api-keys", {}))["key"].split("_")[2]
        for number in range(2 * ROUNDS):
            known, new = bool(number % 2), keys.generate("test")
            caller = server.with_token(keys.token("test", there if known else new.key_id, new.secret))
            begin = time.perf_counter()
            await caller.get("/v1/me", expect=401)
            seconds[known].append(time.perf_counter() - begin)
            report.tried("wrong keys", 401)
    report.also(figures(seconds[True], seconds[False]))


def figures(known: list[float], unknown: list[float]) -> Table:
    """Quartiles of both, and Mann and Whitney's test: how often one with a known id takes longer than one without."""
    ranked = sorted([(one, True) for one in known] + [(one, False) for one in unknown])
    ranks = sum(rank for rank, (_, of_known) in enumerate(ranked, 1) if of_known)
    count, others = len(known), len(unknown)
    wins = ranks - count * (count + 1) / 2
    z = (wins - count * others / 2) / math.sqrt(count * others * (count + others + 1) / 12)
    p = math.erfc(abs(z) / math.sqrt(2))
    table = Table("wrong key", "tries", "quartile ms", "median ms", "quartile ms", box=box.SIMPLE_HEAD)
    for name, times in (("known id", known), ("unknown id", unknown)):
        quartiles = statistics.quantiles(times, n=4)
        table.add_row(name, f"{len(times):,}", *(f"{1000 * one:.3f}" for one in quartiles))
    table.add_row(f"the known one is slower in {100 * wins / (count * others):.1f} % of pairs", f"p = {p:.3f}")
    return table
