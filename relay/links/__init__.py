"""The path of frames from one leg to its peer, and what it counts."""

from typing import Protocol


class Meter:
    """What one direction of a session has delivered.

    `frames` counts whole messages (the last fragment counts, so that both ends agree whatever the
    fragmentation), `nbytes` their payload bytes, `active_at` is the event loop's time of the last one in
    seconds. Added to when a frame is handed to the receiving leg's connection, and nowhere else.
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

    async def splice(self, peer: "Spliceable", meter: Meter) -> None:
        """Carry the frames that come in here to `peer`, counting into `meter`, until this side ends.

        Starts at a message boundary, once the application has taken all that was queued. Returns when
        this socket is closing or gone: what ended it is the next event of `receive()`.
        """


class MessageTooBig(Exception):
    """A message of `size` bytes is over the limit."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"a message of {size} bytes")
