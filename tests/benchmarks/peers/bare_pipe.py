"""A file through a relay by what `pipe` does, but over a connection without handshake and encryption:

python -m tests.benchmarks.peers.bare_pipe send|receive SESSION-URL FILE
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

from websockets.asyncio.client import ClientConnection, connect

from relay.client.pipes import pipe_through


class Bare:
    """What a pipe needs of a connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, message: bytes) -> None:
        """As one WebSocket message."""
        await self._socket.send(message)

    async def end(self) -> None:
        """An empty one: a pipe sends none."""
        await self._socket.send(b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while message := await self._socket.recv():
            assert isinstance(message, bytes)
            yield message


async def main(do: str, url: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ['RELAY_TOKEN']}"}
    sends = do == "send"
    source = os.open(path if sends else os.devnull, os.O_RDONLY)
    target = os.open(os.devnull if sends else path, os.O_WRONLY | os.O_CREAT)
    async with connect(url, additional_headers=headers, compression=None, ping_timeout=None) as socket:
        await socket.send("here")
        await socket.recv()
        await pipe_through(Bare(socket), source, target)  # type: ignore[arg-type]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
