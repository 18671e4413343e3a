"""A TCP proxy between a node and Redis that reads RESP and does to it what bad networks do.

RESP is Redis' serialisation protocol, versions 2 and 3: https://redis.io/docs/latest/develop/reference/protocol-spec/.
The proxy runs in a thread of its own; its methods and `faults` are for any other thread. Order is never
changed: TCP doesn't either.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

from tests.relays import START_SECONDS, free_port

QUEUE_VALUES = 256
"""Values on their way in one direction at most; more wait in the sockets."""

NOWHERE = b"proxy.nowhere"
"""A channel without subscribers: where a lost `PUBLISH` goes, so that its reply keeps its place."""

TWICE = b"redis.call('PUBLISH', KEYS[1], ARGV[1]) return redis.call('PUBLISH', KEYS[1], ARGV[1])"
"""A repeated `PUBLISH` as one command, so that it has one reply."""


@dataclass(frozen=True)
class Faults:
    """What happens to pub/sub messages (chances from 0 to 1, of each) and to everything (the delay)."""

    drop: float = 0.0
    duplicate: float = 0.0
    jitter_seconds: float = 0.0
    """Longest delay of a value, drawn evenly from 0 on."""


class Proxy:
    """Forwards `port` to Redis on `redis_port` for the length of a `with` block, with `faults`."""

    host = "127.0.0.1"

    def __init__(self, redis_port: int, seed: int = 1) -> None:
        self.port = free_port()
        self.url = f"redis://{self.host}:{self.port}/0"
        self.faults = Faults()
        self.dropped = self.duplicated = self.cut = 0
        """How many messages were lost and repeated, and connections cut, so far."""
        self._redis_port = redis_port
        self._random = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)
        self._loop.close()

    def cut_connections(self) -> None:
        """Drop every connection there is, without a word."""
        self._run(self._cut())

    def cut_off(self) -> None:
        """Drop every connection and each new one, until `let_through`."""
        self._refusing = True
        self.cut_connections()

    def let_through(self) -> None:
        """Forward new connections again."""
        self._refusing = False

    def hold(self) -> None:
        """Forward nothing more either way, with the connections open, until `release`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def release(self) -> None:
        """Forward what was held back, and all that follows."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    # From here on: the proxy's own thread.

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    async def _listen(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=2**20)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _cut(self) -> None:
        self.cut += len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._connect(reader, writer))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection both ways until either end closes it."""
        try:
            theirs = await asyncio.open_connection(self.host, self._redis_port, limit=2**20)
        except OSError:  # Redis is away, and so is the proxy
            writer.transport.abort()
            return
        both = {writer, theirs[1]}
        self._open |= both
        ways = [
            asyncio.ensure_future(self._carry(reader, theirs[1], self._command)),
            asyncio.ensure_future(self._carry(theirs[0], writer, self._reply)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open -= both
            for end in both:
                end.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Any) -> None:
        """Carry one direction; `change` gives the bytes to send on in a value's place."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_VALUES)
        writing = asyncio.ensure_future(self._write(due, writer))
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    value = await read_value(reader)
                    delay = self._random.uniform(0, self.faults.jitter_seconds)
                    await due.put((self._loop.time() + delay, change(*value)))
        finally:
            writing.cancel()

    async def _write(self, due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                at, data = await due.get()
                if (delay := at - self._loop.time()) > 0:
                    await asyncio.sleep(delay)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()

    def _command(self, raw: bytes, parts: Any) -> bytes:
        """A command of the node's: a `PUBLISH` may be lost or happen twice."""
        if isinstance(parts, list) and parts[:1] == [b"PUBLISH"]:
            if self._happens(self.faults.drop):
                self.dropped += 1
                return command(b"PUBLISH", NOWHERE, b"")
            if self._happens(self.faults.duplicate):
                self.duplicated += 1
                return command(b"EVAL", TWICE, b"1", *parts[1:])
        return raw

    def _reply(self, raw: bytes, parts: Any) -> bytes:
        """An answer of Redis', or a message of a channel, which may be lost or come twice."""
        if isinstance(parts, list) and parts[:1] == [b"message"]:
            if self._happens(self.faults.drop):
                self.dropped += 1
                return b""
            if self._happens(self.faults.duplicate):
                self.duplicated += 1
                return raw * 2
        return raw

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance


async def read_value(reader: asyncio.StreamReader) -> tuple[bytes, Any]:
    """One RESP value: its bytes, and what it says as far as a proxy cares.

    Strings are bytes, arrays, sets and pushes are lists, anything else is what stands in its line. Raises
    `asyncio.IncompleteReadError` at the end of the stream.
    """
    line = await reader.readuntil(b"\r\n")
    kind, rest = line[:1], line[1:-2]
    if kind in b"$=!" and int(rest) >= 0:
        body = await reader.readexactly(int(rest) + 2)
        return line + body, body[:-2]
    if kind in b"*~>%" and int(rest) >= 0:
        count = int(rest) * (2 if kind == b"%" else 1)
        values = [await read_value(reader) for _ in range(count)]
        return b"".join((line, *(raw for raw, _ in values))), [said for _, said in values]
    return line, rest


def command(*words: bytes) -> bytes:
    """A command as clients send it."""
    return b"".join((b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)))
