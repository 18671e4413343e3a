"""A bare relay on Starlette, for uvicorn: receive from one socket, await the send to the other.

Back-pressure is uvicorn's: `send` waits while the peer's socket is full, and an unread queue stops reading.
"""

import asyncio
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from .pairing import Pairing


class Leg:
    """A socket with its peer to come."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.peer: asyncio.Future[WebSocket] = asyncio.get_running_loop().create_future()


waiting: Pairing[Leg] = Pairing()


async def relay(socket: WebSocket) -> None:
    """Forward all that comes from `socket` to its peer; when it goes, the peer is closed."""
    await socket.accept()
    path = socket.url.path
    leg = Leg(socket)
    if other := waiting.meet(path, leg):
        other.peer.set_result(socket)
        leg.peer.set_result(other.socket)
    # While the peer is away only the close matters; a frame that comes early is kept, and reading stops.
    early = asyncio.ensure_future(socket.receive())
    either: list[asyncio.Future[Any]] = [early, leg.peer]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    message = await early if early.done() else None
    if message and message["type"] == "websocket.disconnect":
        waiting.leave(path, leg)
        if not leg.peer.done():
            return
    peer = await leg.peer
    message = message or await early
    with suppress(Exception):  # either of the two is gone
        while message["type"] == "websocket.receive":
            await peer.send(
                {"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")}
            )
            message = await socket.receive()
    with suppress(Exception):
        await peer.close()


app = Starlette(routes=[WebSocketRoute("/relay/{session_id}", relay)])
