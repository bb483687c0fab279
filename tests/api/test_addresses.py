import pytest
from aiohttp.test_utils import make_mocked_request

from crafely.api.addresses import Addresses
from crafely.config import SettingsError


class _Transport:
    def __init__(self, peer: str | None) -> None:
        self._peer = peer

    def get_extra_info(self, name: str) -> object:
        return (self._peer, 1234) if name == "peername" and self._peer is not None else None


def of(peer: str | None, *told: str, trusted: tuple[str, ...] = ()) -> str:
    headers = [("X-Forwarded-For", one) for one in told]
    request = make_mocked_request("GET", "/", headers=headers, transport=_Transport(peer))
    return Addresses(trusted).of(request)


OURS = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "wanted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        # What one customer has is one address.
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        (None, ""),
    ],
)
def test_without_proxies_who_is_connected_is_who_asks(peer: str | None, wanted: str) -> None:
    assert of(peer) == wanted
    assert of(peer, "198.51.100.1") == wanted


@pytest.mark.parametrize(
    ("peer", "told", "wanted"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::/64"),
        # The client may have written what stands before.
        ("10.0.0.1", ["203.0.113.9, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9", "192.0.2.7"], "192.0.2.7"),
        # Through two proxies of ours.
        ("10.0.0.1", ["203.0.113.9, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.9, 192.0.2.7", "10.0.0.2 , 10.0.0.3"], "192.0.2.7"),
        # Nobody else is believed.
        ("192.0.2.7", ["203.0.113.9"], "192.0.2.7"),
        ("192.0.2.7", ["203.0.113.9, 10.0.0.2"], "192.0.2.7"),
        # Nonsense ends it.
        ("10.0.0.1", ["192.0.2.7, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7, "], "10.0.0.1"),
        ("10.0.0.1", ["unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        ("10.0.0.1", ["192.0.2.7" + ", 10.0.0.2" * 100], "10.0.0.2"),
    ],
)
def test_a_trusted_proxy_says_where_it_had_a_request_from(peer: str, told: list[str], wanted: str) -> None:
    assert of(peer, *told, trusted=OURS) == wanted


@pytest.mark.parametrize("network", ["proxy", "10.0.0.1/8", "10.0.0.0/33", "*"])
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(SettingsError, match="CRAFELY_TRUSTED_PROXIES: expected networks"):
        Addresses(["192.0.2.0/24", network])


def test_a_proxy_that_nobody_trusts_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    addresses = Addresses([])
    for _ in range(3):
        headers = {"X-Forwarded-For": "198.51.100.1"}
        addresses.of(make_mocked_request("GET", "/", headers=headers, transport=_Transport("10.0.0.1")))
    assert [record.message.partition(",")[0] for record in caplog.records] == ["requests come with X-Forwarded-For"]
    assert "198.51" not in caplog.text
