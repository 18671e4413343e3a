"""WebSockets of our server without a network and without time: real protocols on Twisted's own transport.

The one thing that is made up is what lies below: a socket whose kernel takes as many bytes as it's told, and
a reactor that does something only when it's told to.
"""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from itertools import count
from types import SimpleNamespace
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

from relay import conf
from relay.servers.daphne.websocket import WebSocket, WebSocketFactory

REQUEST = (
    b"GET /relay/x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Kernel:
    """A socket as Twisted sees one: what came and is unread, what was taken, and how much more it takes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.unread = bytearray()
        self.hung_up = False
        self.reset = False
        self.sent = bytearray()
        self.room = 1 << 30
        self.write_ended = False
        self.closed = False
        self.cut_short = False
        """Closed although something was unread or still came: a real one is then reset, and what it had sent
        and its peer had not read is lost."""

    def arrive(self, data: bytes) -> None:
        """Bytes of the peer."""
        self.cut_short = self.cut_short or (self.closed and bool(data))
        self.unread += data

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return self._descriptor

    def recv(self, size: int) -> bytes:
        if self.reset:
            raise ConnectionResetError(104, "reset")
        if not self.unread and not self.hung_up:
            raise BlockingIOError(11, "nothing here")
        data = bytes(self.unread[:size])
        del self.unread[:size]
        return data

    def send(self, data: bytes) -> int:
        if self.reset:
            raise ConnectionResetError(104, "reset")
        if self.write_ended:
            raise BrokenPipeError(32, "shut down")
        if not self.room:
            raise BlockingIOError(11, "no room")
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def sendmsg(self, parts: list[bytes]) -> int:
        return self.send(b"".join(parts))

    def shutdown(self, how: int) -> None:
        self.write_ended = True

    def setsockopt(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        self.write_ended = self.closed = True
        self.cut_short = self.cut_short or bool(self.unread)


class Transport(Connection):  # type: ignore[misc] # Twisted's types don't reach here
    """Twisted's TCP connection over a `Kernel`."""

    def __init__(self, kernel: Kernel, reactor: "Reactor") -> None:
        super().__init__(kernel, None, reactor)
        self.kernel = kernel
        self.connected = 1

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    getHost = getPeer


class Reactor:
    """Reads and writes when told to, and calls what is due when time is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.readers: set[Transport] = set()
        self.writers: set[Transport] = set()
        self._calls: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._cancelled: set[int] = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard

    def call_later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> SimpleNamespace:
        """As an event loop has it."""
        number = next(self._order)
        heapq.heappush(self._calls, (self.now + seconds, number, call, arguments))
        return SimpleNamespace(cancel=lambda: self._cancelled.add(number))

    callLater = call_later

    def move_time(self, seconds: float) -> None:
        """Let `seconds` pass."""
        until = self.now + seconds
        while self._calls and self._calls[0][0] <= until:
            due, number, call, arguments = heapq.heappop(self._calls)
            self.now = max(self.now, due)
            if number not in self._cancelled:
                call(*arguments)
        self.now = until

    def turn(self) -> bool:
        """One turn: read what can be read and write what can be written; whether anything was."""
        worked = False
        for ready, do in ((self.readers, "doRead"), (self.writers, "doWrite")):
            for transport in list(ready):
                kernel = transport.kernel
                able = (kernel.unread or kernel.hung_up if do == "doRead" else kernel.room) or kernel.reset
                if transport in ready and able:
                    worked = True
                    why = getattr(transport, do)()
                    if why is not None:
                        ready.discard(transport)
                        transport.connectionLost(Failure(why))
        return worked


class Server:
    """What a `WebSocket` needs of its server; its applications do nothing by themselves."""

    server_name = "test"
    websocket_connect_timeout = 20
    ping_interval, ping_timeout = 20.0, 30.0

    def __init__(self) -> None:
        self.reactor = Reactor()
        # Never run: it only makes futures, which are looked at.
        self._futures = asyncio.new_event_loop()
        self.loop = SimpleNamespace(
            time=lambda: self.reactor.now,
            create_future=self._futures.create_future,
            call_later=self.reactor.call_later,
        )
        self.factory = WebSocketFactory(self)
        self.sockets: list[WebSocket] = []

    def close(self) -> None:
        """Let go of what the operating system gave."""
        self._futures.close()

    def connect(self) -> WebSocket:
        """A socket that has been accepted; its `transport.kernel` is empty again."""
        kernel = Kernel(1000 + len(self.sockets))
        transport = Transport(kernel, self.reactor)
        socket = self.factory.buildProtocol(transport.getPeer())
        socket.scope = {"path": "/relay/x", "client": None}
        transport.protocol = socket
        self.sockets.append(socket)
        socket.makeConnection(transport)
        transport.startReading()
        kernel.arrive(REQUEST)
        while self.reactor.turn():
            pass
        finish(socket.inbox.get())  # the application's first message
        finish(socket.send({"type": "websocket.accept"}))
        while self.reactor.turn():
            pass
        assert kernel.sent.endswith(b"\r\n\r\n")
        kernel.sent.clear()
        return socket

    def start_application(self, *_: Any) -> None:
        pass

    def protocol_disconnected(self, _: Any) -> None:
        pass

    def log_action(self, *_: Any) -> None:
        pass


def finish(work: Coroutine[Any, Any, Any]) -> None:
    """Run what needs not wait for anything."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def small_buffers() -> conf.RelaySettings:
    """Settings under which a socket is full and a message too big after few bytes."""
    return conf.RelaySettings(
        write_high_bytes=1024,
        write_low_bytes=200,
        read_high_bytes=1024,
        read_low_bytes=0,
        max_message_bytes=5000,
    )
