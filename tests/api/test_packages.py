"""``/v1/packages``, end to end."""

from typing import Any

import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")


def pro(api: Api) -> dict[str, Any]:
    """A package with a name that no other test uses."""
    return {
        "name": f"Pro {api.alice.user}",
        "description": "For teams.",
        "price": "29.90",
        "features": ["agents:unlimited", "support"],
        "interval": "year",
        "active": True,
    }


async def test_a_package_is_created_by_an_administrator_and_read_by_everybody(api: Api) -> None:
    made = await api.admin.post("/v1/packages", pro(api))
    assert made["id"].startswith("pkg_")
    assert made.headers["Location"] == f"/v1/packages/{made['id']}"
    assert {name: made[name] for name in pro(api)} == pro(api)
    for reader in (api.alice, api.bob, await api.server.caller("carol", "packages:read")):
        assert (await reader.get(made.headers["Location"])).body == made.body
        assert made.body in await reader.all("/v1/packages")


async def test_a_package_has_defaults(api: Api) -> None:
    made = await api.admin.post("/v1/packages", {"name": pro(api)["name"], "price": "0"})
    given = [made[name] for name in ("description", "price", "features", "interval", "active")]
    assert given == [None, "0.00", [], "month", True]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("9999999999.99", "9999999999.99"), ("0.01", "0.01"), (19.99, "19.99"), (5, "5.00"), ("1e2", "100.00")],
)
async def test_a_price_is_kept_to_the_cent(api: Api, sent: object, kept: str) -> None:
    made = await api.admin.post("/v1/packages", {**pro(api), "price": sent})
    assert made["price"] == kept
    assert (await api.admin.patch(made.headers["Location"], {"price": sent}))["price"] == kept


async def test_only_an_administrator_writes(api: Api) -> None:
    made = await api.admin.post("/v1/packages", pro(api))
    await api.alice.post("/v1/packages", {**pro(api), "name": "Mine"}, expect=403)
    await api.alice.patch(made.headers["Location"], {"price": "0"}, expect=403)
    assert (await api.alice.get(made.headers["Location"])).body == made.body


async def test_a_name_is_taken_once(api: Api) -> None:
    made = await api.admin.post("/v1/packages", pro(api))
    other = await api.admin.post("/v1/packages", {**pro(api), "name": f"Other {api.alice.user}"})
    for refused in (
        await api.admin.post("/v1/packages", pro(api), expect=409),
        await api.admin.patch(other.headers["Location"], {"name": made["name"]}, expect=409),
    ):
        assert refused["code"] == "already_exists"
        assert refused.places == ["/name"]


async def test_a_change_changes_what_was_sent_and_nothing_else(api: Api) -> None:
    made = await api.admin.post("/v1/packages", pro(api))
    change: dict[str, Any] = {"price": "9.00", "interval": "month", "features": [], "description": None}
    changed = await api.admin.patch(made.headers["Location"], change)
    assert changed.body == {**made.body, **change, "updatedAt": changed["updatedAt"]}
    assert changed["updatedAt"] > made["updatedAt"]


async def test_packages_are_listed_newest_first_and_by_whether_they_are_sold(api: Api) -> None:
    ids = [
        (await api.admin.post("/v1/packages", {"name": f"{api.alice.user} {n}", "price": n}))["id"] for n in range(3)
    ]
    await api.admin.patch(f"/v1/packages/{ids[1]}", {"active": False})

    async def listed(**params: str) -> list[str]:
        return [row["id"] for row in await api.alice.all("/v1/packages", **params) if row["id"] in ids]

    assert await listed(take="2") == ids[::-1]
    assert await listed(active="true", take="1") == [ids[2], ids[0]]
    assert await listed(active="false") == [ids[1]]
