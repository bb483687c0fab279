"""``/v1/user-subscriptions``, end to end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTHING: dict[str, list[Any]] = {"features": [], "subscriptions": []}


async def a_package(api: Api, name: str = "Pro", *features: str) -> str:
    body = {"name": f"{name} {api.alice.user}", "price": "1.00", "features": features}
    return str((await api.admin.post("/v1/packages", body))["id"])


def later(**after: float) -> str:
    return (datetime.now(UTC) + timedelta(**after)).isoformat()


async def test_a_subscription_lives_from_its_start_to_its_cancellation(api: Api) -> None:
    package = await a_package(api, "Pro", "support", "agents")
    assert (await api.alice.get("/v1/user-subscriptions/current")).body == NOTHING
    made = await api.alice.post("/v1/user-subscriptions", {"packageId": package})
    path = f"/v1/user-subscriptions/{made['id']}"
    assert made["id"].startswith("sub_")
    assert made.headers["Location"] == path
    assert (made["status"], made["userId"], made["packageId"]) == ("active", api.alice.user, package)
    assert made["endDate"] is None
    assert (await api.alice.get(path)).body == made.body

    current = await api.alice.get("/v1/user-subscriptions/current")
    assert current["features"] == ["agents", "support"]
    assert current["subscriptions"] == [
        {
            "id": made["id"],
            "packageId": package,
            "packageName": f"Pro {api.alice.user}",
            "startDate": made["startDate"],
            "endDate": None,
        }
    ]
    assert (await api.bob.get("/v1/user-subscriptions/current")).body == NOTHING

    cancelled = await api.alice.post(f"{path}/cancel", expect=200)
    assert cancelled["status"] == "cancelled"
    assert cancelled["endDate"] >= made["startDate"]
    assert (await api.alice.get("/v1/user-subscriptions/current")).body == NOTHING


async def test_the_features_of_several_packages_count_once_each(api: Api) -> None:
    for package in (await a_package(api, "A", "x", "y"), await a_package(api, "B", "y", "z")):
        await api.alice.post("/v1/user-subscriptions", {"packageId": package})
    current = await api.alice.get("/v1/user-subscriptions/current")
    assert current["features"] == ["x", "y", "z"]
    assert [one["packageName"].split()[0] for one in current["subscriptions"]] == ["B", "A"]


async def test_nobody_has_two_active_subscriptions_to_one_package(api: Api) -> None:
    package = await a_package(api)
    made = await api.alice.post("/v1/user-subscriptions", {"packageId": package})
    refused = await api.alice.post("/v1/user-subscriptions", {"packageId": package}, expect=409)
    assert refused["code"] == "already_subscribed"
    assert refused.places == ["/packageId"]
    # Another user may, and so may the same one after it ended.
    await api.bob.post("/v1/user-subscriptions", {"packageId": package})
    await api.alice.post(f"/v1/user-subscriptions/{made['id']}/cancel", expect=200)
    await api.alice.post("/v1/user-subscriptions", {"packageId": package})


async def test_what_has_ended_is_not_cancelled_again(api: Api) -> None:
    made = await api.alice.post("/v1/user-subscriptions", {"packageId": await a_package(api)})
    path = f"/v1/user-subscriptions/{made['id']}"
    cancelled = await api.alice.post(f"{path}/cancel", expect=200)
    refused = await api.alice.post(f"{path}/cancel", expect=409)
    assert refused["code"] == "conflict"
    assert "cancelled already" in refused["detail"]
    assert (await api.alice.get(path)).body == cancelled.body


async def test_one_that_has_not_begun_gives_nothing_yet(api: Api) -> None:
    package = await a_package(api, "Pro", "support")
    body = {"packageId": package, "startDate": later(days=1), "endDate": later(days=31)}
    made = await api.alice.post("/v1/user-subscriptions", body)
    assert made["status"] == "active"
    assert (await api.alice.get("/v1/user-subscriptions/current")).body == NOTHING
    cancelled = await api.alice.post(f"/v1/user-subscriptions/{made['id']}/cancel", expect=200)
    assert cancelled["endDate"] == cancelled["startDate"]


async def test_an_end_that_has_come_counts_before_housekeeping_applies_it(api: Api) -> None:
    made = await api.alice.post(
        "/v1/user-subscriptions", {"packageId": await a_package(api, "Pro", "support"), "endDate": later(hours=1)}
    )
    assert (await api.alice.get("/v1/user-subscriptions/current"))["features"] == ["support"]
    api.server.sql("update user_subscriptions set end_date = start_date where id = %s", made["id"])
    assert (await api.alice.get("/v1/user-subscriptions/current")).body == NOTHING


@pytest.mark.parametrize("which", ["pkg_nothing", "no longer sold"])
async def test_only_a_package_that_is_sold_can_be_subscribed(api: Api, which: str) -> None:
    package = await a_package(api)
    await api.admin.patch(f"/v1/packages/{package}", {"active": False})
    body = {"packageId": package if which == "no longer sold" else which}
    refused = await api.alice.post("/v1/user-subscriptions", body, expect=422)
    assert refused.places == ["/packageId"]


async def test_an_administrator_subscribes_others_and_nobody_else_does(api: Api) -> None:
    body = {"packageId": await a_package(api), "userId": api.bob.user}
    refused = await api.alice.post("/v1/user-subscriptions", body, expect=403)
    assert refused["code"] == "insufficient_permissions"
    assert await api.bob.all("/v1/user-subscriptions") == []
    made = await api.admin.post("/v1/user-subscriptions", body)
    assert made["userId"] == api.bob.user
    assert (await api.bob.get(f"/v1/user-subscriptions/{made['id']}")).body == made.body


async def test_subscriptions_are_listed_newest_first_whatever_their_status(api: Api) -> None:
    ids = []
    for name in "ABC":
        made = await api.alice.post("/v1/user-subscriptions", {"packageId": await a_package(api, name)})
        ids.append(made["id"])
    await api.alice.post(f"/v1/user-subscriptions/{ids[0]}/cancel", expect=200)
    rows = await api.alice.all("/v1/user-subscriptions", take="2")
    assert [row["id"] for row in rows] == ids[::-1]
    assert [row["status"] for row in rows] == ["active", "active", "cancelled"]
