"""The caller itself."""

import msgspec

from crafely.api.wire import Call


class Me(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The caller as this API sees it: either apiKeyId or sessionId is set."""

    user_id: str
    permissions: list[str]
    api_key_id: str | None
    session_id: str | None


async def get(call: Call) -> Me:
    """Read who is calling.

    The user behind the API key or session token, and what it may do.
    """
    caller = call.caller
    return Me(
        user_id=caller.user_id,
        permissions=sorted(caller.permissions),
        api_key_id=caller.api_key_id,
        session_id=caller.session_id,
    )
