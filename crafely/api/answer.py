"""An answer that goes out as one piece: status line, headers and body in a single write.

aiohttp's own Response puts its headers together anew for each request, in some twenty calls, and nearly all of them say
the same every time. Here that is done once a second for each status and media type.
"""

import re
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from time import time

from aiohttp import HttpVersion11, web

JSON = "application/json"
# What every answer carries. Nothing here may be kept by a cache, guessed to be of another type, used by a page of
# another origin that has not asked as CORS has it, or tell where it was found. That all of this is to be asked for by
# TLS alone (Strict-Transport-Security) is said by whoever does the TLS: a server without it must not (RFC 6797, 7.2).
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "crafely",
}
# A page brings a policy of its own; of anything else a browser that shows it runs nothing.
PAGE = "text/html"
NO_PAGE = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}

_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Answer(web.StreamResponse):
    """One answer, complete before its first byte is sent.

    Takes the status, the body (None: a 204 or a 304, which have none), its media type and further headers. Raises
    ValueError for a header with a control character in it. ``request_id`` and ``limits``, lines that are not in
    ``headers``, are set before it is sent.
    """

    def __init__(
        self, status: int, body: bytes | None, media_type: str = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        # Not super().__init__(): it makes the dictionaries that this class does without. What aiohttp's protocol asks
        # of an answer stands below.
        self.request_id = ""
        self.limits = b""
        self._code = status
        self._bytes = body
        self._media_type = media_type
        self._extra = _lines(headers) if headers else b""
        self._keep: bool | None = None
        self._request: web.BaseRequest | None = None

    @property
    def status(self) -> int:
        """The status."""
        return self._code

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection is kept after this answer; None, before it is sent: as the client wishes."""
        return self._keep

    def force_close(self) -> None:
        """Ends the connection with this answer."""
        self._keep = False

    @property
    def prepared(self) -> bool:
        """Whether it has been sent."""
        return self._request is not None

    @property
    def body(self) -> bytes:
        """The body."""
        return self._bytes or b""

    @property
    def body_length(self) -> int:
        """How many bytes the body has."""
        return len(self._bytes or b"")

    def send(self, request: web.BaseRequest) -> None:
        """Sends it. Raises ConnectionResetError, which aiohttp expects, where the client has gone."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if self._keep is None:
            self._keep = request.keep_alive
        extra = self._extra + self.limits
        if not self._keep:
            extra += b"Connection: close\r\n"
        elif request.version != HttpVersion11:
            extra += b"Connection: keep-alive\r\n"
        head, id_, body = _head(self._code, self._media_type), self.request_id.encode(), self._bytes
        if body is None:
            data = b"%s%s\r\n%s\r\n" % (head, id_, extra)
        else:
            sent = b"" if request.method == "HEAD" else body
            data = b"%s%s\r\nContent-Length: %d\r\n%s\r\n%s" % (head, id_, len(body), extra, sent)
        self._request = request
        transport.write(data)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Sends it, for whoever treats it as any response of aiohttp's."""
        self.send(request)

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - aiohttp's signature
        """Waits for a client that reads more slowly than it is written to: no more than one answer is kept for it."""
        request = self._request
        if request is not None and request.protocol.writing_paused:
            await request.writer.drain()


class _Heads(dict[tuple[int, str], bytes]):
    """The beginnings of answers, by status and media type, as they are in one second."""

    second = 0

    def __missing__(self, key: tuple[int, str]) -> bytes:
        status, media_type = key
        headers = {**HEADERS, "Date": formatdate(self.second, usegmt=True)}
        if status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            headers["Content-Type"] = media_type
        if not media_type.startswith(PAGE):
            headers |= NO_PAGE
        line = f"HTTP/1.1 {status} {_phrase(status)}\r\n"
        head = self[key] = line.encode() + _lines(headers) + b"X-Request-Id: "
        return head


_heads = _Heads()


def _head(status: int, media_type: str) -> bytes:
    """Everything up to the request's id."""
    now = int(time())
    if now != _heads.second:
        _heads.clear()
        _heads.second = now
    return _heads[status, media_type]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _lines(headers: Mapping[str, str]) -> bytes:
    for name, value in headers.items():
        if _UNSAFE.search(name) or _UNSAFE.search(value):
            # The value may be a client's, so it is not repeated.
            raise ValueError(f"a control character in the header {name!r}")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
