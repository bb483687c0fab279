"""Subscriptions of users to packages: active, until they are cancelled or expire."""

from typing import Annotated

from msgspec import Meta

from crafely.api.preconditions import IfMatch
from crafely.api.wire import Body, Call, ListQuery, Page, Problem, Timestamp, found, in_utc, invalid, page, position
from crafely.auth.permissions import ADMIN
from crafely.store import user_subscriptions
from crafely.store.user_subscriptions import CurrentSubscriptions, UserSubscription

Id = Annotated[str, Meta(min_length=1, max_length=255)]


class NewUserSubscription(Body, kw_only=True, frozen=True):
    """What a new subscription is made from."""

    package_id: Id
    # Now, where it is not sent.
    start_date: Timestamp | None = None
    # Open-ended, where it is not sent.
    end_date: Timestamp | None = None
    # For administrators: whose subscription it is. The caller's, where it is not sent.
    user_id: Id | None = None


async def create(call: Call, body: NewUserSubscription) -> UserSubscription:
    """Subscribe to a package.

    A user has at most one active subscription to a package. Administrators can subscribe other users with `userId`.
    """
    role, user_id = "crafely_app", call.caller.user_id
    if body.user_id is not None and body.user_id != user_id:
        if ADMIN not in call.caller.permissions:
            raise Problem("insufficient_permissions", "Subscribing another user takes the permission admin.")
        role, user_id = "crafely_admin", body.user_id
    start_date = in_utc(body.start_date, pointer="/startDate") if body.start_date is not None else None
    end_date = in_utc(body.end_date, pointer="/endDate") if body.end_date is not None else None
    if start_date is not None and end_date is not None and end_date < start_date:
        raise invalid("expected no time before startDate", pointer="/endDate")
    subscription = await user_subscriptions.create(
        call.services.session(call, role),
        user_id=user_id,
        package_id=body.package_id,
        start_date=start_date,
        end_date=end_date,
    )
    if subscription is None:
        raise invalid("expected the id of a package that is sold", pointer="/packageId")
    call.headers["Location"] = f"/v1/user-subscriptions/{subscription.id}"
    return subscription


async def list_(call: Call, query: ListQuery) -> Page[UserSubscription]:
    """List subscriptions.

    The caller's own, whatever their status, newest first.
    """
    before, before_id = position(query)
    rows = await user_subscriptions.list_for_user(
        call.services.session(call),
        user_id=call.caller.user_id,
        before=before,
        before_id=before_id,
        take=query.take + 1,
        skip=query.skip or 0,
    )
    return page(rows, query)


async def current(call: Call) -> CurrentSubscriptions:
    """Read what the caller has now.

    Every feature of the packages with an active subscription, once, and the subscriptions that give them.
    """
    return await user_subscriptions.current(call.services.session(call), user_id=call.caller.user_id)


async def get(call: Call, id: str) -> UserSubscription:
    """Read a subscription."""
    session = call.services.session(call)
    return found(await user_subscriptions.get(session, id=id, user_id=call.caller.user_id))


async def cancel(call: Call, id: str, if_match: IfMatch) -> UserSubscription:
    """Cancel a subscription.

    It ends now. One that has ended cannot be cancelled (409).
    """
    session, user_id = call.services.session(call), call.caller.user_id
    subscription = await user_subscriptions.cancel(session, id=id, user_id=user_id, versions=if_match)
    if subscription is None and (other := await user_subscriptions.get(session, id=id, user_id=user_id)):
        if other.status == "active":
            raise Problem("precondition_failed")
        raise Problem("conflict", f"The subscription is {other.status} already.")
    return found(subscription)
