"""One direction of a spliced session: from one socket's `dataReceived` to the other's transport.

No queue, no task and no ASGI between them. What can't be written because the peer has no room is never
read: the source isn't read then. Both sockets are of this process and its one event loop.
"""

from typing import TYPE_CHECKING, Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection

from relay.links import Meter
from relay.rules.frames import CLOSE, PING, Control, Forwarder

if TYPE_CHECKING:
    from relay.servers.daphne.protocol import Protocol

READ_BYTES = 256 * 1024
"""Read at once from a spliced socket: measured with frames of 64 KiB and 1 MiB, a quarter less CPU a byte
than reads of 64 KiB, and no gain beyond."""


class Splice:
    """Carries the frames that `source` receives to `target`, as far as the wire to `target` takes them.

    What comes when it takes no more is read all the same: the close frame of `source` may be in it.
    """

    __slots__ = ("_base", "_clock", "_forwarder", "_meter", "_total", "_wire", "source", "target")

    def __init__(self, source: "Protocol", target: "Protocol", meter: Meter, max_message_bytes: int) -> None:
        self.source = source
        self.target = target
        self._wire = target.wire
        self._forwarder = Forwarder(max_message_bytes)
        self._meter = meter
        self._clock = source.clock
        self._base = meter.nbytes
        self._total = 0
        if isinstance(source.transport, Connection):  # not TLS, which has buffers of its own
            source.transport.doRead = self._read

    def take(self, data: bytes) -> None:
        """Forward what `source` received, and have it handle its control frames."""
        self.source.heard_at = self._clock()
        if self._wire.stops:
            rest = self._wire.left
            self._forward(data[:rest])
            data = data[rest:]
        self._forward(data)

    def _forward(self, data: bytes) -> None:
        forwarder, wire, target = self._forwarder, self._wire, self.target
        writes, messages, payload_bytes, controls, failure = forwarder.feed(data)
        if writes and wire.takes_frames:
            target.outlet.write_now(writes)
            self._count(messages, payload_bytes)
            waited = wire.forwarded(forwarder.left_out)
            if waited or wire.over:
                target.forwarded(waited)
            if target.outlet.full:
                self.source.wait_for_peer()
        for control in controls:
            self._handle(control)
        if failure is not None:
            self.source.fail_and_finish(failure.code, failure.text)
            target.source_is_gone()

    def _count(self, messages: int, payload_bytes: int) -> None:
        meter = self._meter
        meter.active_at = self.source.heard_at
        self._total += payload_bytes
        if messages:
            meter.frames += messages
            meter.nbytes = self._base + self._total - self._forwarder.partial_bytes

    def _handle(self, control: Control) -> None:
        payload = control.payload
        if control.opcode == PING:
            self.source.onPing(payload)
        elif control.opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if payload else None
            self.source.onCloseFrame(code, payload[2:])

    def _read(self) -> Any:
        """In place of Twisted's `doRead`, whose read size is also its write high mark."""
        try:
            data = self.source.transport.socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.take(data)
        return None
