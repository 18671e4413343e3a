"""One direction of a spliced session: from one socket's `dataReceived` to the other's transport.

No queue, no task and no ASGI between them. What can't be written because the peer has no room is never
read: the source's transport is paused. Both sockets are of this process and its one event loop.
"""

import time
from typing import TYPE_CHECKING

from relay.frames import Control, Failure, Forwarder
from relay.links import Meter

if TYPE_CHECKING:
    from relay.servers.daphne import RelayWebSocketProtocol


class Splice:
    """Carries the frames that `source` receives to `target`.

    While a frame is half forwarded, `target` may write nothing else (RFC 6455 section 5.4 lets control frames
    stand between the fragments of a message, never inside a frame): it holds its control frames until
    `mid_frame` is over, and `feed` stops there to let them out.
    """

    __slots__ = ("_base", "_forwarder", "_meter", "_total", "source", "target")

    def __init__(
        self,
        source: "RelayWebSocketProtocol",
        target: "RelayWebSocketProtocol",
        meter: Meter,
        max_message_bytes: int,
    ) -> None:
        self.source = source
        self.target = target
        self._forwarder = Forwarder(max_message_bytes)
        self._meter = meter
        self._base = meter.nbytes
        self._total = 0

    @property
    def mid_frame(self) -> bool:
        """Whether the target's output ends inside a frame."""
        return self._forwarder.mid_frame

    @property
    def dead(self) -> bool:
        """Whether the rest of a half forwarded frame can't come any more."""
        return self._forwarder.ended or self.source.gone

    def feed(self, data: bytes) -> tuple[list[Control], Failure | None]:
        """Forward what `source` received; gives the control frames for it to handle, and why it fails."""
        forwarder, target = self._forwarder, self.target
        if not target.holding:
            forwarded = forwarder.feed(data)
            self._hand_over(forwarded.writes, forwarded.messages, forwarded.payload_bytes)
            return forwarded.controls, forwarded.failure
        # To the end of the frame, then what the target holds, then the rest.
        left = forwarder.frame_left if forwarder.mid_frame else 0
        forwarded = forwarder.feed(data[:left])
        self._hand_over(forwarded.writes, forwarded.messages, forwarded.payload_bytes)
        if not forwarder.mid_frame:
            target.release()
        if forwarded.failure or len(data) <= left:
            return forwarded.controls, forwarded.failure
        rest = forwarder.feed(data[left:])
        self._hand_over(rest.writes, rest.messages, rest.payload_bytes)
        return forwarded.controls + rest.controls, rest.failure

    def _hand_over(self, writes: list[bytes], messages: int, payload_bytes: int) -> None:
        target = self.target
        if not writes or not target.takes_frames:
            return
        target.write(writes, payload_bytes)
        self._total += payload_bytes
        meter = self._meter
        meter.active_at = time.monotonic()
        if messages:
            meter.frames += messages
            meter.nbytes = self._base + self._total - self._forwarder.partial_bytes
