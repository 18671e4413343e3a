"""Clients of the behaviour suite: the `websockets` library, compression off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import ConnectionClosed

from tests.tokens import token

DEADLINE = 20.0
"""Seconds after which a test that waits for the relay has failed; never how long one takes."""


def connect(relay: Any, session_id: str, jwt: str | None = None, **options: Any) -> websockets_connect:
    """A connection of one leg, with its own token unless one is given (in the Authorization header)."""
    headers = {"Authorization": f"Bearer {jwt or token()}"}
    options = {"additional_headers": headers, "compression": None, "max_size": None} | options
    uri = options.pop("uri", f"{relay.url}/relay/{session_id}")
    return websockets.connect(uri, **options)


@asynccontextmanager
async def pair(
    relay: Any, session_id: str, **options: Any
) -> AsyncIterator[tuple[ClientConnection, ClientConnection]]:
    """Both legs of a session, each with its own token, which names its role.

    Without that, of two that come at once to different nodes either may be the first.
    """
    async with (
        connect(relay, session_id, token(sub="alice", role="client"), **options) as client,
        connect(relay, session_id, token(sub="bob", role="server"), **options) as server,
    ):
        await relay.paired(session_id)
        yield client, server


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """The code and reason of the close frame that this socket is sent; (1006, "") for a dropped one."""
    try:
        async with asyncio.timeout(DEADLINE):
            message = await socket.recv()
    except ConnectionClosed as error:
        return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")
    raise AssertionError(f"expected a close, got {message!r}")


async def drop(socket: ClientConnection) -> None:
    """Cut the connection without a close frame, as a phone does that loses its network."""
    socket.transport.abort()
    await socket.wait_closed()
