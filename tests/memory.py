"""Legs and a watch for tests of memory: plain sockets that read and send only when told to, and the size of
another process.

A socket of asyncio's streams reads ahead by itself; one that "reads nothing" has to be a bare one.
"""

import asyncio
import contextlib
import socket
import statistics
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import psutil

from tests.behaviour.raw import RawClient

KIB, MIB = 1024, 1024 * 1024

KERNEL_BYTES = 128 * KIB
"""Kernel buffer of each socket of the tests; the relay's own are the kernel's to choose. Not smaller: below
two segments of loopback (64 KiB each) TCP waits for timers."""


CLOSE, PING = 0x8, 0x9


def frame(payload: bytes) -> bytes:
    """A masked binary frame; with a mask of zeros, as what masking costs is not what is tested here."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BBI", 0x82, 0x80 | size, 0) + payload
    if size < 65536:
        return struct.pack("!BBHI", 0x82, 0x80 | 126, size, 0) + payload
    return struct.pack("!BBQI", 0x82, 0x80 | 127, size, 0) + payload


class BareLeg:
    """One leg of a session on a bare socket."""

    def __init__(self, relay: Any, session_id: str, jwt: str | None = None) -> None:
        self.relay = relay
        self._request = RawClient.request(relay, session_id, jwt)
        self.loop = asyncio.get_running_loop()
        self.taken = 0
        """Bytes that this leg's kernel has taken from it: what the relay has read, and what waits."""

    async def __aenter__(self) -> Self:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, KERNEL_BYTES)
        await self.loop.sock_connect(self.socket, (self.relay.host, self.relay.port))
        await self.loop.sock_sendall(self.socket, self._request)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.loop.sock_recv(self.socket, 1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    async def __aexit__(self, *error: object) -> None:
        self.socket.close()

    async def push(self, frames: Iterable[bytes]) -> None:
        """Send frames as fast as they are taken."""
        for data in frames:
            view = memoryview(data)
            while view:
                try:
                    sent = self.socket.send(view)
                except BlockingIOError:
                    await self._writable()
                    continue
                self.taken += sent
                view = view[sent:]
            await asyncio.sleep(0)  # let the others of this loop have a turn

    async def _writable(self) -> None:
        room = self.loop.create_future()
        self.loop.add_writer(self.socket, lambda: room.done() or room.set_result(None))
        try:
            await room
        finally:
            self.loop.remove_writer(self.socket)

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        parts = []
        while size:
            parts.append(await self.loop.sock_recv(self.socket, min(size, 256 * KIB)))
            if not parts[-1]:
                raise ConnectionResetError("the relay ended the connection")
            size -= len(parts[-1])
        return b"".join(parts)

    async def next_frame(self) -> tuple[int, bytes]:
        """The next frame of the relay, as opcode and payload."""
        first, size = await self.read(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.read(8))
        return first & 0x0F, await self.read(size)

    async def next_message(self) -> tuple[int, bytes]:
        """The next frame that is no ping; a leg that reads late finds some."""
        while True:
            opcode, payload = await self.next_frame()
            if opcode != PING:
                return opcode, payload

    async def close_code(self) -> int:
        """The code of the close frame, which has to be the next but for pings."""
        opcode, payload = await self.next_message()
        assert opcode == CLOSE, opcode
        return int.from_bytes(payload[:2])


class Watch:
    """How much the process of a relay grew: unique memory (USS), so without pages it shares with others."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self._settled()
        self.most = self.before

    def _now(self) -> int:
        return int(self._process.memory_full_info().uss)

    def _settled(self) -> int:
        return int(statistics.median(self._now() for _ in range(5)))

    async def _look(self) -> None:
        while True:
            self.most = max(self.most, self._now())
            await asyncio.sleep(0.02)

    @property
    def grown(self) -> int:
        """Bytes that it was larger than at the beginning, at its largest."""
        return max(self.most, self._settled()) - self.before


@contextlib.asynccontextmanager
async def watching(relay: Any) -> AsyncIterator[Watch]:
    """Watch the size of a relay's process for the length of a block."""
    watch = Watch(relay.process.pid)
    looking = asyncio.create_task(watch._look())
    try:
        yield watch
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def held_back(*legs: BareLeg) -> None:
    """Returns when none of these pushing legs gets anything more taken."""
    before, same = -1, 0
    while same < 15:  # in a row; the relay reads and writes thousands of times between two looks
        taken = sum(leg.taken for leg in legs)
        same = same + 1 if taken == before else 0
        before = taken
        await asyncio.sleep(0.1)
