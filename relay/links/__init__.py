"""The path of frames from one leg to its peer, and what it counts."""

import asyncio
from typing import Protocol


class Meter:
    """What one direction of a session has delivered.

    `frames` counts whole messages (the last fragment counts, so that both ends agree whatever the
    fragmentation), `nbytes` the payload bytes of those messages, `active_at` is the event loop's time of
    the last of them in seconds. Added to when a frame is handed to the receiving leg's connection, and
    nowhere else.
    """

    __slots__ = ("active_at", "frames", "nbytes")

    def __init__(self) -> None:
        self.frames = 0
        self.nbytes = 0
        self.active_at = 0.0


SPLICE_EXTENSION = "lem.relay.splice"
"""Key in the ASGI scope's `extensions` under which a server offers a `Spliceable` as `"connection"`."""


class Spliceable(Protocol):
    """One socket of a server that can carry frames between two sockets of its own, below ASGI."""

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when this socket has closed or dropped, whatever is still queued before the disconnect."""

    def splice(self, peer: "Spliceable", meter: Meter) -> bool:
        """From now on carry the frames that come in here straight to `peer`, counting into `meter`.

        False where splicing is off, while a message is half received, the application has not taken all that
        was queued, or one of the two is closing: the caller goes on the ordinary way, and tries again after
        each message, as the socket may wait for that after the one that it's receiving.
        Once spliced, `receive()` gives nothing more but the disconnect.
        """

    def unsplice(self) -> asyncio.Future[None] | None:
        """The session has ended: carry and count no frame more that comes in here.

        Only a frame that is half forwarded goes on to its end, as nothing else can follow it: without it the
        peer could not be sent a close frame. Gives what is done when that one is delivered and counted, or
        never will be; None where there is no such frame, and what is counted is final.
        """

    @property
    def unsent_bytes(self) -> int:
        """Bytes written to this socket that the kernel has not taken."""

    @property
    def taken_bytes(self) -> int:
        """Bytes that the peer has taken, as far as can be seen: grows while it reads, and only then."""


class MessageTooBig(Exception):
    """A message of `size` bytes is over the limit."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"a message of {size} bytes")
