"""ASGI middleware: who is at the other end when a balancer stands between.

A balancer adds the address of its own peer to `X-Forwarded-For` and says in `X-Forwarded-Proto` how it was
reached. Anyone can send these headers, so they count only from the addresses in `RELAY_TRUSTED_PROXIES`.
"""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from relay import conf
from relay.entry.tokens import Application, Scope

SCHEMES = {"http": {"http": "http", "https": "https"}, "websocket": {"http": "ws", "https": "wss"}}
"""What the application is told for each `X-Forwarded-Proto`, by the type of its scope."""


class ForwardedMiddleware:
    """Puts the client's address and scheme into the scope, where a trusted balancer tells them.

    In place, so that a server's access log has them too. The client is the right-most address that isn't
    itself a trusted balancer; what stands left of it may be anyone's invention.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        client = scope.get("client")
        if client is not None and scope["type"] in SCHEMES and _is_trusted(client[0]):
            _look_behind(scope)
        await self.inner(scope, receive, send)


def _look_behind(scope: Scope) -> None:
    headers = scope["headers"]
    client = list(scope["client"])
    for address in _addresses_from_the_right(headers):
        client = [str(address), 0]  # the port isn't told
        if not _is_trusted(str(address)):
            break
    if isinstance(scope["client"], list):
        scope["client"][:] = client  # Daphne's access log reads this very list
    else:
        scope["client"] = tuple(client)
    schemes = SCHEMES[scope["type"]]
    for name, value in headers:
        if name == b"x-forwarded-proto":
            scope["scheme"] = schemes.get(value.decode("latin-1"), scope.get("scheme"))


def _addresses_from_the_right(headers: list[tuple[bytes, bytes]]) -> Iterator[IPv4Address | IPv6Address]:
    """The addresses of `X-Forwarded-For`, the nearest first, up to the first that isn't one."""
    values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    for entry in reversed(",".join(values).split(",")):
        address = _address(entry.strip())
        if address is None:
            return
        yield address


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """`text` as an address; a port, which some balancers add, is left out (RFC 7239 section 6).

    A mapped one (RFC 4291 section 2.5.5.2) is that of IPv4: so a peer looks to a socket that serves both.
    """
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=1024)
def _is_trusted_by(address: str, proxies: str) -> bool:
    known = _address(address)
    return known is not None and any(known in network for network in conf.networks(proxies))


def _is_trusted(address: str) -> bool:
    return _is_trusted_by(address, conf.current().trusted_proxies)
