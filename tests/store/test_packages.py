"""Packages: written by administrators, read by everybody."""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import psycopg
import pytest

from crafely.db.query import WrongRoleError
from crafely.db.session import Session
from crafely.store import packages
from crafely.store.packages import Package

END = datetime.max.replace(tzinfo=UTC)


async def make(session: Session, name: str = "Pro", *, active: bool = True, price: str = "19.99") -> Package:
    return await packages.create(
        session,
        name=name,
        description=None,
        price=Decimal(price),
        features=["a, b", 'quoted "c"'],
        interval="year",
        active=active,
        rate_limit=600,
    )


async def test_a_package_comes_back_as_it_was_made(admin: Session, alice: Session) -> None:
    made = await make(admin)

    assert made.id.startswith("pkg_")
    assert (made.name, made.description, made.price, made.interval) == ("Pro", None, Decimal("19.99"), "year")
    assert made.rate_limit == 600
    assert made.features == ["a, b", 'quoted "c"']
    assert await packages.get(alice, id=made.id) == made == await packages.get(admin, id=made.id)
    assert await packages.get(alice, id="pkg_none") is None


async def test_money_is_exact(admin: Session) -> None:
    made = await make(admin, price="9999999999.99")

    assert made.price == Decimal("9999999999.99")
    assert str((await make(admin, "Free", price="0")).price) == "0.00"


async def test_only_administrators_write(alice: Session, superuser: psycopg.Connection) -> None:
    with pytest.raises(WrongRoleError):
        await make(alice)
    with pytest.raises(WrongRoleError):
        await packages.update(alice, id="pkg_1", changes=msgspec.Raw(b"{}"))

    assert superuser.execute("select from packages").rowcount == 0


async def test_a_name_is_used_once(admin: Session) -> None:
    await make(admin)

    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        await make(admin)

    assert caught.value.diag.constraint_name == "packages_name_key"


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        (b'{"price": -1}', "packages_price_check"),
        (b'{"interval": "week"}', "packages_interval_check"),
        (b'{"name": ""}', "packages_name_check"),
    ],
)
async def test_a_change_that_breaks_a_rule_is_refused_by_its_name(
    admin: Session, changes: bytes, constraint: str
) -> None:
    made = await make(admin)

    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        await packages.update(admin, id=made.id, changes=msgspec.Raw(changes))

    assert caught.value.diag.constraint_name == constraint
    assert await packages.get(admin, id=made.id) == made


async def test_only_what_changes_names_changes(admin: Session) -> None:
    made = await make(admin)

    after = await packages.update(admin, id=made.id, changes=msgspec.Raw(b'{"price": "5.5", "features": []}'))

    assert after is not None
    assert after == msgspec.structs.replace(made, price=Decimal("5.50"), features=[], updated_at=after.updated_at)
    assert after.updated_at > made.updated_at
    assert await packages.update(admin, id=made.id, changes=msgspec.Raw(b"{}")) == after
    assert await packages.update(admin, id="pkg_none", changes=msgspec.Raw(b"{}")) is None


@pytest.mark.parametrize(
    ("active", "names"), [(True, ["Pro", "Basic"]), (False, ["Old"]), (None, ["Pro", "Old", "Basic"])]
)
async def test_lists_hold_what_is_sold_what_is_not_or_all(
    admin: Session, alice: Session, active: bool | None, names: list[str]
) -> None:
    for name in ("Basic", "Old", "Pro"):
        await make(admin, name, active=name != "Old")

    rows = await packages.list_all(alice, active=active, before=END, before_id="", take=10, skip=0)

    assert [row.name for row in rows] == names
