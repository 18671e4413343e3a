"""Exactly once over a transport that delivers at most once, without I/O: numbered batches within a window.

The sender numbers its batches and keeps each until the receiver has it; the receiver takes them in order and
says what it has. Every message of either side carries a `serial`, and tells the highest serial `seen` of the
other side: a batch that went out with a serial that was seen, and is missing, is lost and goes out again.
What the receiver's own socket has taken gives the sender its credit back, so that what is under way, in the
transport and on both sides, is the window at most.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

Frame = bytes | str
"""One message of a WebSocket: `bytes` is binary, `str` is text."""

FRAME_BYTES = 64
"""What a frame counts beside its payload, in bytes: a flood of empty frames is bounded, too."""


@dataclass(slots=True)
class Batch:
    """Frames that go in one message."""

    number: int
    frames: list[Frame] = field(default_factory=list)
    nbytes: int = 0
    """Payload of all frames."""
    serial: int = 0
    """Of the message that it is under way with; 0 while it waits to go out."""


class Outgoing:
    """The sending half: what waits, what is under way, what goes next.

    `window_bytes` bounds all that the far socket has not taken, `batch_bytes` the payload of one message; a
    frame that is larger than either goes alone, as a frame is never cut.
    """

    __slots__ = (
        "_accepted",
        "_again",
        "_batch_bytes",
        "_kept",
        "_kept_bytes",
        "_taken",
        "_waiting",
        "_window_bytes",
        "last",
        "serial",
    )

    def __init__(self, window_bytes: int, batch_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._batch_bytes = batch_bytes
        self._accepted = 0
        self._taken = 0
        self._waiting: deque[Batch] = deque()  # never sent; only the last one grows
        self._kept: deque[Batch] = deque()  # sent, and not known to be received
        self._kept_bytes = 0
        self._again: deque[Batch] = deque()  # those of the kept ones that have to go out again
        self.last = 0
        """Number of the last batch, 0 if there was none."""
        self.serial = 0
        """Of the last message of this side, whatever it carried."""

    @property
    def under_way(self) -> int:
        """Bytes accepted here that the far socket has not taken, as far as is known."""
        return self._accepted - self._taken

    @property
    def unreceived(self) -> bool:
        """Whether there is anything that the receiver is not known to have."""
        return bool(self._waiting or self._kept)

    def has_room(self, nbytes: int) -> bool:
        """Whether a frame of `nbytes` of payload fits the window; one always fits an empty window."""
        return not self.under_way or self.under_way + nbytes + FRAME_BYTES <= self._window_bytes

    def add(self, frame: Frame, nbytes: int) -> None:
        """Accept a frame of `nbytes` of payload; ask `has_room` before."""
        self._accepted += nbytes + FRAME_BYTES
        waiting = self._waiting
        if not waiting or waiting[-1].nbytes + nbytes > self._batch_bytes:
            self.last += 1
            waiting.append(Batch(self.last))
        waiting[-1].frames.append(frame)
        waiting[-1].nbytes += nbytes

    def stamp(self) -> int:
        """The serial for the next message of this side."""
        self.serial += 1
        return self.serial

    def next_batch(self, flush: bool = False) -> Batch | None:
        """The batch to send now, stamped, if there is one.

        While much is under way a batch that isn't full waits for more, or until what went before it is
        received: bulk goes in full batches, and a single frame at once. Unless told to `flush`.
        """
        if self._again:
            batch = self._again.popleft()
        elif self._waiting and (flush or self._is_due(self._waiting)):
            batch = self._waiting.popleft()
            self._kept.append(batch)
            self._kept_bytes += batch.nbytes
        else:
            return None
        batch.serial = self.stamp()
        return batch

    def _is_due(self, waiting: deque[Batch]) -> bool:
        full = len(waiting) > 1 or waiting[0].nbytes >= self._batch_bytes
        return full or self._kept_bytes < self._batch_bytes // 4

    def failed(self, batch: Batch) -> None:
        """The message with `batch` could not be sent, or perhaps it was: it goes out again."""
        batch.serial = 0
        self._collect()

    def acknowledge(self, received: int, frames: int, nbytes: int, seen: int) -> None:
        """The receiver has all batches up to the number `received`, its socket took so many frames with
        `nbytes` of payload, and it has seen our message `seen`. What comes late or twice changes nothing.

        Raises `ValueError` for what was never sent.
        """
        taken = nbytes + frames * FRAME_BYTES
        if received > self.last or taken > self._accepted or seen > self.serial:
            raise ValueError(f"more is acknowledged than was sent: {received}, {taken}, {seen}")
        self._taken = max(self._taken, taken)
        while self._kept and self._kept[0].number <= received:
            self._kept_bytes -= self._kept.popleft().nbytes
        for batch in self._kept:
            if batch.serial <= seen:
                batch.serial = 0  # lost
        self._collect()

    def _collect(self) -> None:
        # All of them, in order: the receiver has no use for a batch without those before it.
        self._again = deque(batch for batch in self._kept if not batch.serial)


class Verdict(Enum):
    """What a received batch is to its receiver."""

    NEXT = auto()
    """To be delivered now."""
    REPEATED = auto()
    """Was received before."""
    EARLY = auto()
    """One before it is missing: it's dropped, and comes again."""


class Incoming:
    """The receiving half: what was received."""

    __slots__ = ("received", "seen")

    def __init__(self) -> None:
        self.received = 0
        """Number of the last batch received in order."""
        self.seen = 0
        """Highest serial of the other side's messages."""

    def see(self, serial: int) -> None:
        """A message of the other side came."""
        self.seen = max(self.seen, serial)

    def receive(self, number: int) -> Verdict:
        """The batch `number` came."""
        if number <= self.received:
            return Verdict.REPEATED
        if number > self.received + 1:
            return Verdict.EARLY
        self.received = number
        return Verdict.NEXT
