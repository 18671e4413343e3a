"""A bare relay on `websockets`' asyncio server and uvloop: `async for` one socket, await the other's send.

Back-pressure is the library's: `send` drains, and the receive queue stops reading at its high-water mark.
"""

import asyncio
import sys
from contextlib import suppress
from typing import Any

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from .pairing import Pairing


class Leg:
    """A connection with its peer to come."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.peer: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()


async def main(port: int) -> None:
    waiting: Pairing[Leg] = Pairing()

    async def relay(connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path
        leg = Leg(connection)
        if other := waiting.meet(path, leg):
            other.peer.set_result(connection)
            leg.peer.set_result(other.connection)
        closed = asyncio.ensure_future(connection.wait_closed())
        either: list[asyncio.Future[Any]] = [closed, leg.peer]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        waiting.leave(path, leg)
        if not leg.peer.done():
            return
        peer = leg.peer.result()
        with suppress(ConnectionClosed):
            async for message in connection:
                await peer.send(message)
        await peer.close()

    async with serve(relay, "127.0.0.1", port, compression=None, max_size=64 * 1024 * 1024):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
