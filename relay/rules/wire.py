"""What stands on the wire to one receiver, and so what may be written to it next. Without I/O.

Two writers share a spliced socket: the peer's frames, passed on as they arrive, and the relay's own control
frames. RFC 6455 allows those between two frames, never inside one (section 5.4), and nothing after a close
frame (section 5.5.1). The `Wire` of a socket is asked by both, and is the only one to know.

It can't be wrong about a frame that is half written, because of how it learns of one: `forwarded` is called
with what is missing of a frame by whoever has just written the rest of it, for these very bytes. Of what is
read and not written, since the session is over or the socket closes, it never hears. So once the session is
over, `left` bytes are all that the peer may still add: they end the frame that stands on the wire, and
nothing begins another one.
"""

from relay.rules.frames import CLOSE, control_frame


class Wire:
    """The state of one socket's output. It begins between two frames."""

    __slots__ = ("_waiting", "closed", "dead", "left", "over")

    def __init__(self) -> None:
        self.left = 0
        """Payload bytes that are missing of the frame written last; 0 between two frames."""
        self.over = False
        """No frame of the peer may begin any more; one that has begun is written to its end."""
        self.closed = False
        """A close frame is written: nothing may follow it."""
        self.dead = False
        """Nothing can be written any more: TCP ends, or has to, for the rest of a frame can't come."""
        self._waiting: dict[int, bytes] = {}  # by opcode: control frames, until the end of the frame

    @property
    def takes_frames(self) -> bool:
        """Whether bytes of the peer may be written: any, or once `over` those that end a frame."""
        return not self.dead and (self.left > 0 or not self.over)

    @property
    def stops(self) -> bool:
        """Whether something has to happen at the end of this frame: its rest is to be written by itself."""
        return self.over or bool(self._waiting)

    @property
    def unfinished(self) -> bool:
        """Whether the peer's frame on it is still to be written to its end."""
        return self.left > 0 and not self.dead

    def forwarded(self, left: int) -> bytes:
        """Bytes of the peer were written, up to `left` bytes before the end of a frame.

        Gives the control frames that have waited for that end, to be written now.
        """
        self.left = left
        if left or not self._waiting:
            return b""
        waiting, self._waiting = self._waiting, {}
        close = waiting.pop(CLOSE, None)
        frames = b"".join(control_frame(opcode, payload) for opcode, payload in waiting.items())
        return frames if close is None else frames + self.control(CLOSE, close)

    def control(self, opcode: int, payload: bytes) -> bytes:
        """A control frame of the relay's own: gives what is to be written now.

        That is nothing while a frame is half written; `forwarded` gives it at the end of that. Of two with
        the same opcode the later one counts, as for pongs it may (RFC 6455 section 5.5.3). After a close, or
        one that waits, there is no place for another.
        """
        if self.dead or self.closed or CLOSE in self._waiting:
            return b""
        if opcode == CLOSE:
            self.over = True
        if self.left:
            self._waiting[opcode] = payload
            return b""
        self.closed = self.closed or opcode == CLOSE
        return control_frame(opcode, payload)

    def stop(self) -> None:
        """The session is over: no frame of the peer may begin."""
        self.over = True

    def cut(self) -> None:
        """Nothing more comes from the peer. Inside a frame that leaves nothing but to end TCP."""
        self.over = True
        self.dead = self.dead or self.left > 0

    def end(self) -> None:
        """TCP ends: whoever still has something to write is too late."""
        self.over = self.dead = True
