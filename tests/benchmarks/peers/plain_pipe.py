"""A file through a relay without encryption, by the library and the sizes that the client uses:

python -m tests.benchmarks.peers.plain_pipe send|receive SESSION-URL FILE
"""

import asyncio
import os
import sys
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

MESSAGE = 65_535
"""Bytes of a message: as long as the client's, tag and type included."""


async def send(socket: ClientConnection, path: Path) -> None:
    """All of the file once the receiver is there, as the client does it too; the receiver closes."""
    await socket.recv()
    with path.open("rb") as file:
        await socket.send(str(path.stat().st_size))  # noqa: ASYNC240
        while message := file.read(MESSAGE):
            await socket.send(message)
    await socket.wait_closed()


async def receive(socket: ClientConnection, path: Path) -> None:
    """As many bytes as the sender says."""
    await socket.send("here")
    left = int(await socket.recv())
    with path.open("wb") as file:
        while left:
            message = await socket.recv()
            assert isinstance(message, bytes)
            left -= file.write(message)


async def main(do: str, url: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ['RELAY_TOKEN']}"}
    async with connect(url, additional_headers=headers, compression=None, ping_timeout=None) as socket:
        await {"send": send, "receive": receive}[do](socket, Path(path))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
