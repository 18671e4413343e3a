"""RFC 6455 on one connection: autobahn parses, this bounds, keeps alive and closes.

What autobahn gets wrong for a relay is done here: how much it keeps, which close codes it lets through, how
long a close may take, and what a ping may do to a connection that isn't read.
"""

import struct
from collections.abc import Callable
from enum import IntFlag
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.tcp import Connection

from relay import conf
from relay.rules.closing import ABNORMAL, NO_STATUS, clip
from relay.rules.flow import WaterMarks
from relay.rules.frames import CLOSE, INVALID_DATA, MESSAGE_TOO_BIG, PING, PONG, PROTOCOL_ERROR
from relay.rules.wire import Wire
from relay.servers.daphne.outlet import Outlet
from relay.servers.daphne.splice import Splice

READ_SLICE = 16 * 1024
"""Bytes given to autobahn at a time: it copies what it holds twice for each frame in it."""


class Hold(IntFlag):
    """Why the socket isn't read."""

    APPLICATION = 1  # the application is behind
    PEER = 2  # spliced: the peer's socket has no room
    UPGRADE = 4  # the client sends frames before it was accepted
    SPLICE = 8  # the application takes what is queued, so that the socket can be spliced


def is_valid_code(code: int) -> bool:
    """Whether a close frame may carry `code` (RFC 6455 section 7.4 and IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class Protocol(WebSocketServerProtocol):  # type: ignore[misc] # autobahn has no types
    """The connection, from the upgrade request to the end of TCP. `server` is set before it's connected.

    A subclass hears `on_message`, `on_end` and `on_gone`.
    """

    server: Any
    transport: Any
    state: int
    failedByMe: bool
    data: bytes

    def connectionMade(self) -> None:
        super().connectionMade()
        self.settings = settings = conf.current()
        self.clock = self.server.loop.time
        self.opened_at = self.heard_at = self.clock()
        self.outlet = Outlet(self.transport, WaterMarks(settings.write_high_bytes, settings.write_low_bytes))
        self.outlet.on_room = self._has_room
        self.wire = Wire()
        self.holds = Hold(0)
        self.gone = False
        self._request_read = False
        self._consuming = False
        self._payload: bytes | bytearray = b""  # of the message that is being received
        self._announced = 0  # its size as its headers say so far
        self._pinged_at = 0.0
        self._awaits_pong = False
        self._ping_waits = False  # for the end of a half written frame
        self._pong: bytes | None = None  # the latest for which there was no room yet
        self._ended = False
        self._own_close: tuple[int, str] | None = None
        self._deadline: Any = None
        # Once spliced: where the frames go that come in here, and whose frames are written here.
        self._outgoing: Splice | None = None
        self._incoming: Splice | None = None
        self._on_frame_whole: list[Callable[[], None]] = []
        self._sends_no_more = False
        self._after_close: Callable[[], None] | None = None  # until the close frame is written

    # What a subclass hears

    def on_message(self, payload: bytes, is_binary: bool) -> None:
        """A whole message came; text is valid UTF-8."""
        raise NotImplementedError

    def on_end(self, code: int, reason: str, clean: bool) -> None:
        """No message comes any more: how the connection ends. Called once."""
        raise NotImplementedError

    def on_gone(self) -> None:
        """The connection is gone. Called once, after `on_end`."""
        raise NotImplementedError

    # From the socket

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the peer. At most one read is kept while the socket is held."""
        self.heard_at = self.clock()
        if self.state == self.STATE_CONNECTING and self._request_read:
            # The client doesn't wait to be accepted, as it should (RFC 6455 section 4.1).
            self.data += data
            self.hold(Hold.UPGRADE)
            return
        for start in range(0, len(data), READ_SLICE):
            if self.holds:
                self.data += data[start:]
                return
            self.data += data[start : start + READ_SLICE]
            self.consumeData()

    def consumeData(self) -> None:
        """Handle the bytes that are here, until the socket is held."""
        if self.state == self.STATE_CONNECTING:
            if not self._request_read:
                self.processHandshake()
        elif not self._consuming:
            self._consuming = True
            try:
                while not self.holds and self.state != self.STATE_CLOSED and self.processData():
                    pass
            finally:
                self._consuming = False

    def hold(self, why: Hold) -> None:
        """Stop reading the socket. One that closes is read to its end, for the peer's answer."""
        if self.state in (self.STATE_OPEN, self.STATE_CONNECTING):
            if not self.holds:
                self.transport.pauseProducing()
            self.holds |= why

    def release(self, why: Hold) -> None:
        """Read on, unless there is another reason not to."""
        if not self.holds & why:
            return
        self.holds &= ~why
        if not self.holds:
            self.consumeData()
        if not self.holds:
            self.transport.resumeProducing()

    # These five take the place of autobahn's lists of pieces, which grow without bound by empty fragments
    # and cost more memory than the message by small ones.

    def onMessageBegin(self, isBinary: bool) -> None:
        self.message_is_binary = isBinary
        self._payload = b""
        self._announced = 0

    def onMessageFrameBegin(self, length: int) -> None:
        self._announced += length
        if self._announced > self.settings.max_message_bytes:
            self._fail_connection(
                MESSAGE_TOO_BIG, f"a message is over {self.settings.max_message_bytes} bytes"
            )

    def onMessageFrameData(self, payload: bytes) -> None:
        if not payload or self.state != self.STATE_OPEN:
            return
        if not self._payload:
            self._payload = payload
        else:
            if isinstance(self._payload, bytes):
                self._payload = bytearray(self._payload)
            self._payload += payload

    def onMessageFrameEnd(self) -> None:
        pass

    def onMessageEnd(self) -> None:
        payload, self._payload = bytes(self._payload), b""
        if self.state != self.STATE_OPEN:
            return
        self.on_message(payload, self.message_is_binary)

    def onPing(self, payload: bytes) -> None:
        if self.state == self.STATE_OPEN:
            self._pong = payload
            self._send_pong()

    def _send_pong(self) -> None:
        """Answer the latest ping, which answers those before it (RFC 6455 section 5.5.3).

        When there's room: a peer that pings and doesn't read must not fill the memory.
        """
        if self._pong is not None and not self.outlet.full and self.state == self.STATE_OPEN:
            payload, self._pong = self._pong, None
            self.sendFrame(PONG, payload)

    def _has_room(self) -> None:
        """The unsent bytes are few again: write and read what had to wait for that."""
        self._send_pong()
        if self._incoming is not None:
            self._incoming.source.release(Hold.PEER)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> None:
        """RFC 6455 section 5.5.1: the peer closes, or answers our close."""
        if self.state == self.STATE_OPEN:
            if code is not None and not is_valid_code(code):
                self._fail_connection(PROTOCOL_ERROR, f"close code {code} isn't allowed in a close frame")
                return
            try:
                reason = (reasonRaw or b"").decode()
            except UnicodeDecodeError:
                self._fail_connection(INVALID_DATA, "a close reason isn't UTF-8")
                return
            self._end(NO_STATUS if code is None else code, reason, clean=True)
            self.sendCloseFrame(code, reasonRaw, isReply=True)
        self.wasClean = not self.failedByMe
        self._when_closed(self.dropConnection)

    def _fail_connection(self, code: int = 1001, reason: str = "") -> None:
        """RFC 6455 section 7.1.7: the peer broke a rule. It's told; what else it sends is dropped."""
        if self.state == self.STATE_OPEN:
            self.failedByMe = True
            self._end(code, reason, clean=False)
            self.sendCloseFrame(code, clip(reason).encode())

    def fail_and_finish(self, code: int, reason: str) -> None:
        """As above, where what follows can't be made sense of, so the peer's answer isn't recognised."""
        self._fail_connection(code, reason)
        self._when_closed(self._finish)

    def _finish(self) -> None:
        """End TCP for whom no close frame can be written, or no answer to one be read.

        Not before the frame is whole that comes from here: whoever sees the end of TCP sends nothing more, so
        that its peer would be left with half a frame, too.
        """
        if self._outgoing is None:
            self._end_tcp()
        else:
            self._outgoing.target.when_frame_whole(self._end_tcp)

    def _end_tcp(self) -> None:
        """Nothing more is sent; what comes is read and thrown away until the peer ends, too.

        To close with something unread would make the kernel send a reset, which overtakes what is unsent.
        """
        if self._sends_no_more:
            return  # shut down twice, Twisted closes the socket, with what is unread
        self._sends_no_more = True
        if isinstance(self.transport, Connection):
            self.transport.loseWriteConnection()
        else:  # TLS has a close of its own, and is read until the peer has sent it
            self.dropConnection(abort=False)

    def _when_closed(self, action: Callable[[], None]) -> None:
        """Do `action` when the close frame is written, which may have to wait for the end of a frame."""
        if self.wire.closed or self.wire.dead:
            action()
        else:
            self._after_close = action

    def connectionLost(self, reason: Any = None) -> None:
        # Straight on: autobahn formats two debug lines here, wanted or not.
        self._connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The transport is gone."""
        self.gone = True
        self._end_wire()
        if self._incoming is not None:
            self._incoming.source.release(Hold.PEER)
        if self._outgoing is not None:
            self._outgoing.target.source_is_gone()
        if self._deadline is not None:
            self._deadline.cancel()
        self.outlet.close()
        if self._own_close is not None:
            self._end(*self._own_close, clean=wasClean)
        else:
            self._end(ABNORMAL, "", clean=False)
        self.on_gone()

    def _end(self, code: int, reason: str, *, clean: bool) -> None:
        """Only the first end counts."""
        if not self._ended:
            self._ended = True
            self.on_end(code, reason, clean)

    # To the socket

    def close_with(self, code: int, reason: str) -> None:
        """Begin the closing handshake, if it's open. What was written before is delivered first."""
        if self.state == self.STATE_OPEN:
            self._own_close = code, clip(reason)
            self.sendCloseFrame(code, self._own_close[1].encode())

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """What autobahn writes: the handshake and, through `sendFrame`, control frames."""
        self.outlet.write(data)

    def sendFrame(self, opcode: int, payload: bytes = b"", **_: Any) -> bool:
        """Write one control frame; False if it waits for the end of a frame, or has no place any more."""
        frame = self.wire.control(opcode, payload)
        if frame:
            self.outlet.write(frame)
        return bool(frame)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Begin or answer the closing handshake. Nothing is sent after it."""
        if self.state != self.STATE_OPEN:
            return
        payload = b"" if code is None else struct.pack("!H", code) + (reasonUtf8 or b"")
        self.sendFrame(CLOSE, payload)
        self.state = self.STATE_CLOSING
        self._start_deadline()
        self.outlet.abandon()
        self.release(self.holds)  # the peer's answer has to be read; what comes before it is dropped
        if self.wire.dead:
            self._finish()

    def dropConnection(self, abort: bool = False) -> None:
        """Close the transport, unless told to abort when all is written; bounded by `close_seconds`."""
        if self.state == self.STATE_CLOSED:
            return
        self.droppedByMe = True
        self.state = self.STATE_CLOSED
        self._end_wire()
        self.outlet.abandon()
        if abort:
            self.transport.abortConnection()
        else:
            self._start_deadline()
            self.transport.loseConnection()

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.server.loop.call_later(self.settings.close_seconds, self._give_up)

    def _give_up(self) -> None:
        """The close took too long: whatever is unsent is dropped."""
        self.wasClean = False
        self.dropConnection(abort=True)
        self.transport.abortConnection()  # where it was closing already

    # Spliced

    def take_from(self, incoming: Splice) -> None:
        """From now on `incoming` writes here, and waits when there's no room."""
        self._incoming = incoming
        if self.outlet.full:
            incoming.source.wait_for_peer()

    def wait_for_peer(self) -> None:
        """The peer has no room: don't read."""
        self.hold(Hold.PEER)

    def forwarded(self, waited: bytes) -> None:
        """Bytes of the peer were written here. `waited` is what had to wait for the end of their frame."""
        if waited:
            self.outlet.write(waited)
            if self._ping_waits:
                self._pinged(self.clock())
        if not self.wire.left:
            self._tell_frame_whole()
            if self.wire.closed and self._after_close is not None:
                self._after_close()

    def source_is_gone(self) -> None:
        """The peer sends nothing more: a frame that is half written here can't be ended, only TCP can."""
        self.wire.cut()
        if self.wire.dead:
            self._tell_frame_whole()
            if self.state == self.STATE_CLOSING:
                self._finish()

    def when_frame_whole(self, call: Callable[[], None]) -> None:
        """Call it when the peer's half written frame is whole, or never will be; now if there is none."""
        if self.wire.unfinished:
            self._on_frame_whole.append(call)
        else:
            call()

    def _tell_frame_whole(self) -> None:
        calls, self._on_frame_whole = self._on_frame_whole, []
        for call in calls:
            call()

    def _end_wire(self) -> None:
        self.wire.end()
        self._tell_frame_whole()

    # Time-outs

    def check(self, now: float) -> None:
        """Called every second with the event loop's time: the upgrade's deadline, and the keepalive."""
        server = self.server
        if self.state == self.STATE_CONNECTING:
            if 0 <= server.websocket_connect_timeout < now - self.opened_at:
                self.failHandshake("", 503)
            return
        if self.state != self.STATE_OPEN:
            return
        if self.holds or self.heard_at >= self._pinged_at:
            # Of a peer that isn't read the pong can't be heard, so there is no deadline; the ping still makes
            # the host of one that is gone answer with a reset.
            self._awaits_pong = False
        elif self._awaits_pong and 0 < server.ping_timeout < now - self._pinged_at:
            self.dropConnection(abort=True)
            return
        quiet = now - max(self.heard_at, self._pinged_at)
        # Unsent bytes do what a ping does.
        if quiet >= server.ping_interval and not self.outlet.unsent_bytes:
            # Its time for an answer begins when it's written: not before the end of a half written frame.
            self._ping_waits = not self.sendFrame(PING)
            if not self._ping_waits:
                self._pinged(now)

    def _pinged(self, now: float) -> None:
        self._ping_waits = False
        self._pinged_at = now
        self._awaits_pong = not self.holds
