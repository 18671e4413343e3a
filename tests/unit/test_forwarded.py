"""Promises of `relay.entry.forwarded`: only a trusted balancer says who is behind it."""

from typing import Any

import pytest

from relay import conf
from relay.entry.forwarded import ForwardedMiddleware

BALANCER = "10.0.0.1"


@pytest.fixture(autouse=True)
def trusted(settings):
    settings.RELAY = {"trusted_proxies": "10.0.0.0/8, ::1"}
    conf.current.cache_clear()
    yield
    conf.current.cache_clear()


async def seen(peer: Any, *forwarded: str, kind: str = "websocket", proto: str = "") -> dict[str, Any]:
    """The scope that the application gets."""
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    if proto:
        headers.append((b"x-forwarded-proto", proto.encode()))
    scope = {
        "type": kind,
        "client": peer,
        "headers": headers,
        "scheme": "ws" if kind == "websocket" else "http",
    }
    got: dict[str, Any] = {}

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        got.update(scope)

    await ForwardedMiddleware(application)(scope, None, None)
    assert got["client"] is scope["client"]
    return got


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("header", "client"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        (["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        (["203.0.113.7", "10.1.2.3"], "203.0.113.7"),
        (["203.0.113.7, unknown, 10.1.2.3"], "10.1.2.3"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["unknown, 10.1.2.3"], "10.1.2.3"),
        (["no address"], BALANCER),
        ([""], BALANCER),
        ([], BALANCER),
    ],
)
async def test_a_trusted_balancer_tells_the_nearest_address_that_is_not_a_balancer(kind, header, client):
    assert (await seen((BALANCER, 1), *header, kind=kind))["client"][0] == client


async def test_an_address_of_ipv4_is_the_same_on_a_socket_that_serves_both_versions():
    assert (await seen(("::ffff:10.0.0.1", 1), "::ffff:203.0.113.7"))["client"] == ("203.0.113.7", 0)


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::9", "a host name"])
async def test_from_anyone_else_the_headers_count_for_nothing(peer):
    scope = await seen((peer, 1), "198.51.100.1", proto="https")
    assert (scope["client"], scope["scheme"]) == ((peer, 1), "ws")


async def test_a_socket_without_an_address_is_nobody_s_balancer():
    assert (await seen(None, "198.51.100.1"))["client"] is None


@pytest.mark.parametrize(
    ("kind", "proto", "scheme"),
    [
        ("http", "https", "https"),
        ("http", "http", "http"),
        ("websocket", "https", "wss"),
        ("websocket", "nonsense", "ws"),
    ],
)
async def test_a_trusted_balancer_tells_how_it_was_reached(kind, proto, scheme):
    assert (await seen(("::1", 1), kind=kind, proto=proto))["scheme"] == scheme


async def test_a_list_is_changed_in_place_for_the_access_log():
    client = [BALANCER, 1]
    assert (await seen(client, "203.0.113.7"))["client"] is client


@pytest.mark.parametrize("given", ["10.0.0.300", "10.0.0.1/8", "caddy"])
def test_what_is_no_network_is_refused_with_one_line(given):
    with pytest.raises(conf.SettingError, match=r"RELAY_TRUSTED_PROXIES: got .* expected addresses"):
        conf.build({"RELAY_TRUSTED_PROXIES": given})
