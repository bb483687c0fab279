"""Packages: what users can subscribe to. Everybody may read them; administrators write them."""

from decimal import Decimal
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from crafely.api.preconditions import IfMatch, matched
from crafely.api.services import changes
from crafely.api.wire import Body, Call, ListQuery, Page, decimal_within, found, page, position
from crafely.store import packages
from crafely.store.packages import Package

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Description = Annotated[str, Meta(max_length=10_000)]
Features = Annotated[list[Annotated[str, Meta(min_length=1, max_length=255)]], Meta(max_length=100)]
Interval = Literal["month", "year"]
RateLimit = Annotated[
    int,
    Meta(
        ge=1,
        le=1_000_000_000,
        description="Requests a minute of all keys and sessions of a subscriber together; null says nothing of them.",
    ),
]


class NewPackage(Body, kw_only=True, frozen=True):
    """What a new package is made from."""

    name: Name
    description: Description | None = None
    # With at most two places: "29.90". A string, so that no program rounds it on the way.
    price: Decimal
    features: Features = []
    interval: Interval = "month"
    # Whether it is sold.
    active: bool = True
    rate_limit: RateLimit | None = None


class PackageChanges(Body, kw_only=True, frozen=True):
    """What to change; a field that is not sent stays as it is."""

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    price: Decimal | UnsetType = UNSET
    features: Features | UnsetType = UNSET
    interval: Interval | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    rate_limit: RateLimit | None | UnsetType = UNSET


class ListPackages(ListQuery, kw_only=True, frozen=True):
    """Which packages to list."""

    active: Annotated[bool, Meta(description="true: those that are sold; false: those no longer sold.")] | None = None


async def create(call: Call, body: NewPackage) -> Package:
    """Create a package.

    For administrators.
    """
    package = await packages.create(
        call.services.session(call, "crafely_admin"),
        name=body.name,
        description=body.description,
        price=decimal_within(body.price, "/price", precision=12, scale=2),
        features=body.features,
        interval=body.interval,
        active=body.active,
        rate_limit=body.rate_limit,
    )
    call.headers["Location"] = f"/v1/packages/{package.id}"
    return package


async def list_(call: Call, query: ListPackages) -> Page[Package]:
    """List packages.

    Newest first, everybody's alike.
    """
    before, before_id = position(query)
    rows = await packages.list_all(
        call.services.session(call),
        active=query.active,
        before=before,
        before_id=before_id,
        take=query.take + 1,
        skip=query.skip or 0,
    )
    return page(rows, query)


async def get(call: Call, id: str) -> Package:
    """Read a package."""
    return found(await packages.get(call.services.session(call), id=id))


async def update(call: Call, id: str, body: PackageChanges, if_match: IfMatch) -> Package:
    """Change a package.

    For administrators. Only what is sent changes. With `active` false it is no longer sold; subscriptions go on.
    Another rate limit counts within a minute.
    """
    if isinstance(body.price, Decimal):
        decimal_within(body.price, "/price", precision=12, scale=2)
    session = call.services.session(call, "crafely_admin")
    package = await packages.update(session, id=id, versions=if_match, changes=changes(body))
    return await matched(package, if_match, lambda: packages.get(session, id=id))
