"""Promises of `relay.routing`: which WebSocket goes where."""

from typing import Any

import pytest

from relay import routing, servers
from relay.grants import SESSION_ID_RULE


async def answers(path: str, extensions: dict[str, Any]) -> list[dict[str, Any]]:
    """What the relay sends to an upgrade request for this path, without a token."""
    sent = []
    messages = [{"type": "websocket.disconnect", "code": 1000}, {"type": "websocket.connect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": path,
        "headers": [],
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


async def test_a_server_that_is_told_to_stop_drains_the_sessions(here, monkeypatch):
    told = []

    async def drain(seconds: float) -> None:
        told.append(seconds)

    monkeypatch.setattr(here, "drain", drain)
    await servers.drain(3.5)
    assert told == [3.5]
