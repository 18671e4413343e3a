"""Run in a network namespace of its own: a side of a session whose network goes away; prints what it sees.

Arguments: a folder for the relay, and whether the side sends (`True`) or only listens when that happens.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
from pathlib import Path

from relay.client.connection import Closed, RelayConnection
from tests.client.ends import alice, bob
from tests.relays import running

SIOCSIFFLAGS = 0x8914
IFF_UP = 1
LIMIT = 30.0
"""Seconds; far below what the kernel takes by itself."""


def set_loopback(flags: int) -> None:
    """Bring the loopback interface up, or take it down (netdevice(7))."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


async def lose(url: str, speaks: bool) -> str:
    """What a side says whose network is gone."""

    async def other(side: RelayConnection) -> None:
        with contextlib.suppress(Closed):
            async with side as peer:
                async for _ in peer:
                    pass

    others = asyncio.create_task(other(bob(url, "gone", silence_seconds=1)))
    try:
        async with asyncio.timeout(LIMIT), alice(url, "gone", silence_seconds=1) as peer:
            set_loopback(0)
            while speaks:
                await peer.send(bytes(100_000))
            async for _ in peer:
                pass
    except Closed as error:
        return str(error)
    finally:
        await asyncio.wait([others])
        set_loopback(IFF_UP)
    return "nothing"


def main(folder: str, speaks: str) -> None:
    """Have a relay in this namespace, and the session across it."""
    set_loopback(IFF_UP)
    with running("daphne spliced", Path(folder)) as relay:
        sys.stdout.write(asyncio.run(lose(relay.url, speaks == "True")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
