"""Idempotency-Key: a request that is sent again is answered again, and done once.

What a POST does and what it answers are stored in one transaction, so whatever happens on the way to the client, a
second request finds both or neither. Only success is kept: where nothing was done there is nothing to repeat, and a
mistake can be mended under the same key. No secret is kept: a replay has null in its place.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any

from multidict import istr

from crafely.api.answer import Answer
from crafely.api.problems import Problem, invalid
from crafely.keyring import Keyring
from crafely.store import idempotency_keys

IDEMPOTENCY_KEY = istr("Idempotency-Key")
# Printable; a header's value has no space at its ends. A key or a session token in the wrong header must not be stored.
PATTERN = r"^(?!.*(?:crf_[a-z]{2,8}_|eyJ[\w-]{8,}\.))[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?$"
# The largest answer that is kept, in bytes; sealed it is a third larger.
MAX_BODY = 2 * 1024 * 1024

_KEY = re.compile(PATTERN)


async def once(call: Any, body: bytes, work: Callable[[], Awaitable[Any]], finish: Callable[[Any], Answer]) -> Answer:
    """Answer a request that has the header: do it, or give what was answered before.

    Takes the call, the request's body, what does it, and what makes its result an answer. A result that holds a secret
    has a method kept(), which gives it without. All statements of the call run in one transaction. Raises Problem: 422
    for a bad key and for one that was sent with another request, 409 while the first one is under way, 413 for an
    answer that is too large to be kept.
    """
    user_id, key = call.caller.user_id, _key(call.request.headers.getall(IDEMPOTENCY_KEY))
    ring: Keyring = call.services.keyring
    place = ("idempotency_keys", "body", f"{user_id}/{key}")
    fingerprint = _fingerprint(call.request.method, call.request.raw_path, body)
    async with call.services.session(call).transaction() as transaction:
        # By a statement of its own: the next one then sees what its last holder has stored.
        if not await idempotency_keys.lock(transaction, user_id=user_id, key=key):
            raise Problem("in_flight", headers={"Retry-After": "1"})
        before = await idempotency_keys.get(transaction, user_id=user_id, key=key)
        if before is not None:
            if before.fingerprint != fingerprint:
                raise Problem("idempotency_key_reused")
            headers = {"Location": before.location, "ETag": before.etag, "Idempotency-Replayed": "true"}
            call.headers.update({name: value for name, value in headers.items() if value is not None})
            return Answer(before.status, ring.open(before.body, *place).encode(), headers=call.headers)
        call.transaction = transaction
        result = await work()
        answer = finish(result)
        text = finish(result.kept()).body if hasattr(result, "kept") else answer.body
        if len(text) > MAX_BODY:
            raise Problem("too_large", f"With an Idempotency-Key the answer may have {MAX_BODY} bytes.")
        await idempotency_keys.create(
            transaction,
            user_id=user_id,
            key=key,
            fingerprint=fingerprint,
            status=answer.status,
            location=call.headers.get("Location"),
            etag=call.headers.get("ETag"),
            body=ring.seal(text.decode(), *place),
        )
    return answer


def _key(given: Sequence[str]) -> str:
    if len(given) > 1 or not _KEY.match(given[0]):
        raise invalid(
            "expected, once, 1 to 255 printable characters of ASCII, and no API key", parameter="Idempotency-Key"
        )
    return given[0]


def _fingerprint(method: str, path: str, body: bytes) -> str:
    # No method and no path holds a line end.
    return sha256(f"{method} {path}\n".encode("utf-8", "surrogatepass") + body).hexdigest()
