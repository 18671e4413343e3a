"""Many TCP connections over one connection to the peer, each with flow control of its own.

Messages of a connection: one byte of type, four of stream number, then:

| type | name | rest |
|---|---|---|
| `O` | open | target as `host:port` in UTF-8; by the forwarding side only, with numbers from 1 up |
| `A` | accept | empty: the target is connected |
| `R` | reject | why, in UTF-8; the number is free of any meaning from then on |
| `D` | data | 1 to 65,513 bytes; never more of them under way than the other side gave credit for |
| `C` | credit | four bytes: how many more bytes of data may come; each side begins with 262,144 |
| `E` | end | empty: no more data from this side |
| `X` | abort | empty: the stream is broken, both ways |

A credit of nothing is a sign of life of a session in which streams are open and silent.

A stream is over when both sides have ended, or one aborted. What comes for a stream that is over is ignored,
as it may have crossed its end. The serving side connects only to targets on its list, compared as text.
"""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from relay.client.awake import awake
from relay.client.connection import Closed, RelayConnection
from relay.client.wire import MAX_BODY

log = logging.getLogger(__name__)

HEAD: Final = 5
"""Bytes of type and stream number."""
PIECE: Final = MAX_BODY - HEAD
"""Bytes of data in one message: what fits one record, so that streams take turns often."""
WINDOW: Final = 256 * 1024
"""Bytes under way per stream and direction: memory that a stalled one costs, and 5 MB/s at 50 ms."""
MAX_STREAMS: Final = 256
"""Streams at once: with their windows 64 MiB at most that a peer can make us hold."""
CONNECT_SECONDS: Final = 10.0
"""For the target to take a connection."""


class StreamError(Exception):
    """The peer does not keep to the protocol of streams."""


class _Stream:
    """One TCP connection of ours and its counterpart at the peer."""

    def __init__(self, number: int, streams: "Streams") -> None:
        self.number = number
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams = streams
        self._credit = WINDOW  # bytes that we may send
        self._room = asyncio.Event()
        self._given = WINDOW  # bytes that the peer may still send
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()  # bounded by what was given
        self._ended = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both directions to their ends. Raises `OSError` where the TCP connection breaks."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send(reader))
            both.create_task(self._receive(writer))

    def take(self, kind: bytes, rest: bytes) -> None:
        """What the peer sent for this stream; raises `StreamError`."""
        if kind == b"D" and rest and not self._ended and len(rest) <= self._given:
            self._given -= len(rest)
            self._arrived.put_nowait(rest)
        elif kind == b"E" and not rest and not self._ended:
            self._ended = True
            self._arrived.put_nowait(b"")
        elif kind == b"C" and len(rest) == 4:
            self._credit += int.from_bytes(rest)
            self._room.set()
        elif kind == b"A" and not rest and not self.accepted.done():
            self.accepted.set_result(None)
        else:
            raise StreamError("the peer broke the rules of a stream")

    async def _send(self, reader: asyncio.StreamReader) -> None:
        while True:
            while self._credit == 0:
                self._room.clear()
                await self._room.wait()
            piece = await reader.read(min(PIECE, self._credit))
            if not piece:
                return await self._streams.tell(b"E", self.number)
            self._credit -= len(piece)
            await self._streams.tell(b"D", self.number, piece)

    async def _receive(self, writer: asyncio.StreamWriter) -> None:
        taken = 0
        while piece := await self._arrived.get():
            writer.write(piece)
            await writer.drain()
            taken += len(piece)
            if taken >= WINDOW // 4:  # seldom enough to cost little, often enough to keep data coming
                self._given += taken
                await self._streams.tell(b"C", self.number, taken.to_bytes(4))
                taken = 0
        with contextlib.suppress(OSError):
            writer.write_eof()


class Streams:
    """All streams of one connection: `forward` opens them, `allow` lets the peer do so."""

    def __init__(self, peer: RelayConnection, allow: Collection[str] = ()) -> None:
        self._peer = peer
        self._allow = frozenset(allow)
        self._streams: dict[int, tuple[_Stream, asyncio.Task[None]]] = {}
        self._highest = 0

    async def tell(self, kind: bytes, number: int, rest: bytes = b"") -> None:
        """Send one message to the peer, when there is room."""
        await self._peer.send(kind + number.to_bytes(4) + rest)

    async def run(self) -> None:
        """Serve all streams until the peer ends. Raises `StreamError` and what the connection raises."""
        try:
            async with awake(self._show_life):
                async for message in self._peer:
                    self._dispatch(message)
        finally:
            tasks = [task for _, task in self._streams.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _show_life(self) -> None:
        """While a TCP connection is open at both ends, the session is in use, however silent it is."""
        of_both = (at for at, (stream, _) in self._streams.items() if self._allow or stream.accepted.done())
        if number := next(of_both, 0):
            await self.tell(b"C", number, bytes(4))

    def forward(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a TCP connection that was made to us to `target` at the peer's."""
        if len(self._streams) >= MAX_STREAMS:
            log.warning("%d connections are open, which is the most", MAX_STREAMS)
            writer.close()
            return
        self._highest += 1
        number = self._highest
        task = self._start(number, lambda: self._outgoing(number, target, reader, writer))
        # It may be cancelled before it took hold of the connection.
        task.add_done_callback(lambda task: _reset(writer) if task.cancelled() else None)

    def _start(self, number: int, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._guard(number, work))
        self._streams[number] = _Stream(number, self), task
        return task

    async def _guard(self, number: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            try:
                await work()
            except* OSError:
                await self.tell(b"X", number)
        except* Closed:
            pass  # which `run` raises
        finally:
            self._streams.pop(number, None)

    async def _outgoing(
        self, number: int, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        stream = self._streams[number][0]
        try:
            await self.tell(b"O", number, target.encode())
            await stream.accepted
            await stream.carry(reader, writer)
        except BaseException:
            _reset(writer)
            raise
        writer.close()

    async def _incoming(self, number: int, target: str) -> None:
        stream = self._streams[number][0]
        host, _, port = target.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError as error:
            log.warning("%s can't be reached: %s", target, error)
            await self.tell(b"R", number, b"the target can't be reached")
            return
        try:
            await self.tell(b"A", number)
            await stream.carry(reader, writer)
        except BaseException:
            _reset(writer)
            raise
        writer.close()

    def _dispatch(self, message: bytes) -> None:
        """Act on a message without waiting for anything: a stalled stream must not hold up the others."""
        if len(message) < HEAD:
            raise StreamError("the peer does not speak the protocol of streams")
        kind, number, rest = message[:1], int.from_bytes(message[1:HEAD]), message[HEAD:]
        if kind == b"O":
            self._opened(number, rest.decode(errors="replace"))
        elif number not in self._streams:
            if kind not in (b"A", b"R", b"D", b"C", b"E", b"X") or not 0 < number <= self._highest:
                raise StreamError("the peer speaks of a stream that never was")
        elif kind in (b"R", b"X"):
            if kind == b"R":
                log.warning("the peer refuses a connection: %s", ascii(rest[:200].decode(errors="replace")))
            self._streams[number][1].cancel()
        else:
            self._streams[number][0].take(kind, rest)

    def _opened(self, number: int, target: str) -> None:
        if not self._allow or number != self._highest + 1:
            raise StreamError("the peer opened a stream that it may not open")
        if len(self._streams) >= 2 * MAX_STREAMS:
            raise StreamError("the peer opens streams faster than it takes our answers")
        self._highest = number
        if target in self._allow and len(self._streams) < MAX_STREAMS:
            self._start(number, lambda: self._incoming(number, target))
        else:
            log.warning("the peer asked for %s, which is not allowed", ascii(target[:200]))
            self._start(number, lambda: self.tell(b"R", number, b"not allowed"))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a TCP connection so that the other end knows it: an orderly end would look as if all had come."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
