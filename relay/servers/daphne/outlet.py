"""The way out of one socket: how much is unsent, who waits for room, and how much the peer has taken."""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

from twisted.protocols.policies import ProtocolWrapper

from relay.rules.flow import Gauge, WaterMarks


class Outlet:
    """Watches the bytes that were written to a transport of Twisted and that the kernel has not taken.

    Twisted tells a producer only when all is sent, and pauses it at the size of one read. So this looks
    each time the transport has written. Under TLS what is counted is what is encrypted already; up to
    64,000 bytes more may wait to be encrypted.
    """

    __slots__ = (
        "_gauge",
        "_handed",
        "_room",
        "_socket",
        "_transport",
        "_write",
        "on_room",
    )

    def __init__(self, transport: Any, marks: WaterMarks) -> None:
        self._transport = transport
        self._socket = socket_of(transport)
        self._gauge = Gauge(marks)
        self._room: asyncio.Future[None] | None = None
        self._handed = 0  # bytes that the kernel has taken since this watches
        self.on_room: Callable[[], None] | None = None
        """Called when the unsent bytes are down to the low mark after they were above the high one."""
        self._write = self._socket.doWrite
        self._socket.doWrite = self._write_and_measure

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        socket = self._socket
        return len(socket.dataBuffer) - socket.offset + socket._tempDataLen  # type: ignore[no-any-return]

    @property
    def taken_bytes(self) -> int:
        """Bytes that the peer's kernel has acknowledged since this watches: grows while the peer reads."""
        return self._handed - kernel_bytes(self._socket.fileno())

    @property
    def full(self) -> bool:
        """Whether a writer has to wait: above the high mark, or not down to the low one since."""
        return self._gauge.paused

    def write(self, data: bytes) -> None:
        """Write when the event loop comes round to it, together with what else is written until then."""
        self._transport.write(data)
        self.measure()

    def write_now(self, parts: list[bytes]) -> None:
        """Write at once what the kernel takes, the rest as `write` does: for what is a batch already.

        Twisted waits for the event loop to say that the socket is writable: two changes to its poll set, one
        more turn and a copy for each write, and a socket with nothing unsent nearly always is.
        """
        socket = self._socket
        if socket is self._transport and not self.unsent_bytes and socket.connected:
            parts = self._send(socket.socket, parts)
            if not parts:
                return
        self._transport.writeSequence(parts)
        self.measure()

    def _send(self, socket: Any, parts: list[bytes]) -> list[bytes]:
        """Give the kernel what it takes; gives what is left."""
        try:
            sent = socket.sendmsg(parts) if len(parts) > 1 else socket.send(parts[0])
        except OSError:  # no room, or gone: Twisted finds out which
            return parts
        self._handed += sent
        for index, part in enumerate(parts):
            if sent < len(part):
                return [part[sent:], *parts[index + 1 :]]
            sent -= len(part)
        return []

    def measure(self) -> None:
        """Compare what is unsent with the marks; call it after each write to the transport."""
        gauge = self._gauge
        grown = self.unsent_bytes - gauge.level
        if grown > 0:
            gauge.add(grown)
        elif gauge.remove(-grown):
            self._wake()
            if self.on_room is not None:
                self.on_room()

    async def room(self) -> None:
        """Return when there is room, or the outlet is closed: the caller looks at the socket's state."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        # Several may wait for the same future: the cancellation of one must not reach the others.
        await asyncio.shield(self._room)

    def abandon(self) -> None:
        """Nothing more may be sent: let all go on who wait for room."""
        self._wake()

    def close(self) -> None:
        """The transport is gone."""
        self._socket.doWrite = lambda: None  # was a cycle
        self.on_room = None
        self._wake()

    def _write_and_measure(self) -> Any:
        before = self.unsent_bytes
        result = self._write()
        self._handed += before - self.unsent_bytes
        self.measure()
        return result

    def _wake(self) -> None:
        if self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None


def socket_of(transport: Any) -> Any:
    """The TCP or Unix transport below TLS."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def kernel_bytes(descriptor: int) -> int:
    """Bytes in a socket's kernel buffer that the peer has not acknowledged; 0 where that can't be asked."""
    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # ValueError: the socket is closed
        return 0
    (waiting,) = struct.unpack("i", answer)
    return int(waiting)
