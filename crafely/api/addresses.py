"""The address that a request comes from, as limits count it."""

import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import hdrs, web

from crafely.config import SettingsError

log = logging.getLogger("crafely")

# What one customer of a provider has: he may take any address in it.
PREFIX = 64
# Proxies that a request may have come through.
MAX_HOPS = 32


class Addresses:
    """Tells where requests come from.

    Takes the networks of proxies that are trusted to say where they had a request from; SettingsError for what is no
    network. Without any, who is connected is who asks.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = []
        for one in trusted:
            try:
                self._trusted.append(ip_network(one))
            except ValueError:
                raise SettingsError("CRAFELY_TRUSTED_PROXIES: expected networks such as 10.0.0.0/8") from None
        self._warned = False

    def of(self, request: web.BaseRequest) -> str:
        """The address, of IPv6 its network of 64 bits; empty where the client has gone.

        Each proxy adds at the right whom it had the request from: the first from there that is no proxy of ours is the
        client, and what stands before is what that client claims.
        """
        here = _parsed(request.remote or "")
        if here is None:
            return ""
        told = request.headers.getall(hdrs.X_FORWARDED_FOR, ())
        if told:
            if not self._is_ours(here):
                self._warn()
            for hop in reversed(",".join(told).rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
                if not self._is_ours(here) or (before := _parsed(hop)) is None:
                    break
                here = before
        return str(here) if here.version == 4 else str(ip_network((here, PREFIX), strict=False))

    def _is_ours(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)

    def _warn(self) -> None:
        if not self._warned and not self._trusted:
            self._warned = True
            log.warning(
                "requests come with X-Forwarded-For, and CRAFELY_TRUSTED_PROXIES names nobody who may say it: failed "
                "attempts to authenticate of all who come through one proxy count together"
            )


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address as servers and proxies write it: 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1]:80."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # An IPv4 client of a socket that takes both.
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
