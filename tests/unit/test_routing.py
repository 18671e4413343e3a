"""Promises of `relay.routing`: which WebSocket goes where."""

import time
from collections.abc import Sequence
from typing import Any

import jwt
import pytest
from rest_framework_simplejwt.state import token_backend

from relay import routing, servers, sessions
from relay.rules.closing import CloseReason
from relay.rules.grants import SESSION_ID_RULE, Refused


async def answers(
    path: str, extensions: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()
) -> list[dict[str, Any]]:
    """What the relay sends to an upgrade request for this path."""
    sent = []
    messages = [{"type": "websocket.disconnect", "code": 1000}, {"type": "websocket.connect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": path,
        "headers": headers,
        "subprotocols": [],
        "query_string": b"",
        "client": ("203.0.113.7", 1),
        "extensions": extensions,
    }
    await routing.application(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/", "/relay", "/relays/x", "/x/relay/y", "/nowhere\n/relay/x"])
async def test_an_unknown_path_is_not_found_where_the_server_can_say_so(path):
    start, body = await answers(path, {"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert b"/relay/{session_id}" in body["body"]
    assert await answers(path, {}) == [{"type": "websocket.close"}]


@pytest.mark.parametrize("path", ["/relay/", "/relay/a/b", "/relay/a\nb", "/relay/" + "x" * 129])
async def test_whatever_follows_the_prefix_is_told_what_a_session_id_is(path):
    accepted, close = await answers(path, {"websocket.http.response": {}})
    assert accepted["type"] == "websocket.accept"
    assert (close["code"], close["reason"]) == (4403, f"forbidden: {SESSION_ID_RULE}")


async def test_a_session_without_a_token_is_told_so():
    accepted, close = await answers("/relay/room", {})
    assert (accepted["type"], close["code"]) == ("websocket.accept", 4401)


async def test_behind_a_trusted_balancer_the_client_is_who_the_balancer_says(here, monkeypatch):
    seen = []

    async def join(self: Any, session_id: str, grant: Any, port: sessions.Port) -> None:
        seen.append((session_id, port.address))
        raise Refused(CloseReason.UNAVAILABLE)

    monkeypatch.setattr(sessions.Sessions, "join", join)
    token = jwt.encode({"exp": int(time.time()) + 600}, token_backend.signing_key, token_backend.algorithm)
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"x-forwarded-for", b"198.51.100.1")]
    _, close = await answers("/relay/room", {}, headers)
    assert (seen, close["code"]) == ([("room", "198.51.100.1")], 1013)


@pytest.fixture
def limits() -> dict[str, Any]:
    return {"trusted_proxies": "203.0.113.0/24"}


async def test_a_server_that_is_told_to_stop_drains_the_sessions(here, monkeypatch):
    told = []

    async def drain(seconds: float) -> None:
        told.append(seconds)

    monkeypatch.setattr(here, "drain", drain)
    await servers.drain(3.5)
    assert told == [3.5]
