"""One WebSocket of the server: RFC 6455 by autobahn below, ASGI above, flow control both ways between."""

import functools
import logging
import struct
from enum import IntFlag
from http import HTTPStatus
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import defer
from twisted.internet.tcp import Connection

from relay import conf
from relay.closing import ABNORMAL, NO_STATUS, clip
from relay.flow import WaterMarks
from relay.frames import BINARY, CLOSE, INVALID_DATA, MESSAGE_TOO_BIG, PING, PONG, PROTOCOL_ERROR, TEXT
from relay.links import SPLICE_EXTENSION, Meter
from relay.servers.daphne.outlet import Outlet
from relay.servers.daphne.splice import Splice
from relay.servers.inbox import Inbox, Message

logger = logging.getLogger(__name__)

FIN = 0x80
INTERNAL_ERROR = 1011

READ_SLICE = 16 * 1024
"""Bytes given to autobahn at a time: it copies what it holds twice for each frame in it."""

JOINED_BYTES = 16 * 1024
"""Up to this size, header and payload are joined to one write; above it the copy costs more than a write."""


class Hold(IntFlag):
    """Why the socket isn't read."""

    APPLICATION = 1  # the application is behind
    PEER = 2  # spliced: the peer's socket has no room
    UPGRADE = 4  # the client sends frames before it was accepted


class SocketClosed(OSError):
    """The application sends to a socket that is closing or closed (ASGI, since version 2.4)."""


def is_valid_code(code: int) -> bool:
    """Whether a close frame may carry `code` (RFC 6455 section 7.4 and IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def frame_header(opcode: int, size: int) -> bytes:
    """The header of an unmasked final frame with `size` bytes of payload (RFC 6455 section 5.2)."""
    if size < 126:
        return bytes((FIN | opcode, size))
    if size < 65536:
        return struct.pack("!BBH", FIN | opcode, 126, size)
    return struct.pack("!BBQ", FIN | opcode, 127, size)


class WebSocket(WebSocketServerProtocol):  # type: ignore[misc] # autobahn has no types
    """One connection, from the upgrade request to the end of TCP.

    The HTTP request that is upgraded sets `server` and `scope`, and hands over the transport.
    """

    server: Any
    scope: dict[str, Any]
    transport: Any
    state: int
    failedByMe: bool
    data: bytes

    # The upgrade

    def connectionMade(self) -> None:
        settings = conf.current()
        super().connectionMade()
        self.settings = settings
        self.clock = self.server.loop.time
        self.opened_at = self.heard_at = self.clock()
        self.pinged_at = 0.0
        self.inbox = Inbox(
            WaterMarks(settings.read_high_bytes, settings.read_low_bytes),
            pause=functools.partial(self.hold, Hold.APPLICATION),
            resume=functools.partial(self.release, Hold.APPLICATION),
        )
        self.outlet = Outlet(self.transport, WaterMarks(settings.write_high_bytes, settings.write_low_bytes))
        self.holds = Hold(0)
        self._consuming = False
        self._awaits_pong = False
        self._pong: bytes | None = None  # the latest that could not be sent yet
        self._request_read = False
        self._handshake: Any = None  # resolved when the application accepts or refuses
        self._denial: Message | None = None
        self._opened = False
        self._told: int | None = None  # the close code that the application was told
        self._own_close: tuple[int, str] | None = None
        self._deadline: Any = None
        self._payload: bytes | bytearray = b""
        self._announced = 0
        self.gone = False
        # Once spliced: where the frames go that come in here, and whose frames are written here.
        self._outgoing: Splice | None = None
        self._incoming: Splice | None = None
        self._held_close: bytes | None = None  # until the end of a half forwarded frame
        self._drop_afterwards = False

    def onConnect(self, request: Any) -> Any:
        """The request is in order: start the application, which accepts or refuses."""
        self._request_read = True
        self.scope["subprotocols"] = request.protocols
        self.scope["extensions"] = {"websocket.http.response": {}}
        if self.settings.splice:
            self.scope["extensions"][SPLICE_EXTENSION] = {"connection": self}
        self._handshake = defer.Deferred()
        self.server.start_application(self, self.scope, self.inbox.get, self.send)
        self.inbox.put({"type": "websocket.connect"}, 0)
        return self._handshake

    def onOpen(self) -> None:
        self._opened = True
        self._log("connected")
        # Only the handshake needed these; a waiting socket should cost little.
        for name in ("http_headers", "http_request_data", "http_response_data"):
            self.__dict__.pop(name, None)
        self.release(Hold.UPGRADE)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Answer the upgrade request with an HTTP error, without `reason`: it may repeat the request."""
        phrase = HTTPStatus(code).phrase
        lines = [f"HTTP/1.1 {code} {phrase}", "Connection: close", "Content-Length: 0"]
        lines += [f"{name}: {value}" for name, value in responseHeaders or ()]
        self._refuse(code, "\r\n".join([*lines, "", ""]).encode("latin-1"))

    def _refuse(self, status: int, response: bytes) -> None:
        self.wasNotCleanReason = f"refused with {status}"
        self._handshake = None
        self._log("rejected", status=status)
        self.outlet.write(response)
        self.dropConnection(abort=False)

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
        message: Message
        if self.message_is_binary:
            message = {"type": "websocket.receive", "bytes": payload}
        else:
            message = {"type": "websocket.receive", "text": payload.decode()}
        self.inbox.put(message, len(payload))

    def onPing(self, payload: bytes) -> None:
        if self.state == self.STATE_OPEN:
            self._pong = payload
            self._send_pong()

    def _send_pong(self) -> None:
        """Answer the latest ping, which answers those before it (RFC 6455 section 5.5.3).

        Later if there's no room: a peer that pings and doesn't read must not fill the memory.
        """
        may = not self.outlet.full and not self._is_mid_frame and self.state == self.STATE_OPEN
        if self._pong is not None and may:
            payload, self._pong = self._pong, None
            self.sendFrame(PONG, payload)

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
            self._tell(NO_STATUS if code is None else code, reason, clean=True)
            self.sendCloseFrame(code, reasonRaw, isReply=True)
        self.wasClean = not self.failedByMe
        if self._held_close is None:
            self.dropConnection(abort=False)
        else:
            self._drop_afterwards = True

    def _fail_connection(self, code: int = 1001, reason: str = "") -> None:
        """RFC 6455 section 7.1.7: the peer broke a rule. It's told; what else it sends is dropped."""
        if self.state == self.STATE_OPEN:
            self.failedByMe = True
            self._tell(code, reason, clean=False)
            self.sendCloseFrame(code, clip(reason).encode())

    def fail_and_finish(self, code: int, reason: str) -> None:
        """As above, where what follows can't be made sense of, so the peer's answer isn't recognised.

        It sees the close frame and the end; what it still sends is read and thrown away until it ends too,
        as closing with unread data would make the kernel send a reset, which may overtake the close frame.
        """
        self._fail_connection(code, reason)
        if self._held_close is None:
            if isinstance(self.transport, Connection):
                self.transport.loseWriteConnection()
            else:  # TLS has a close of its own, and is read until the peer has sent it
                self.dropConnection(abort=False)

    def connectionLost(self, reason: Any = None) -> None:
        # Straight on: autobahn formats two debug lines here, wanted or not.
        self._connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The transport is gone."""
        self.gone = True
        if self._incoming is not None:
            self._incoming.source.release(Hold.PEER)
        if self._outgoing is not None:
            self._outgoing.target.source_is_gone()
        if self._deadline is not None:
            self._deadline.cancel()
        self.outlet.close()
        if self._own_close is not None:
            self._tell(*self._own_close, clean=wasClean)
        else:
            self._tell(ABNORMAL, "", clean=False)
        if self._opened:
            self._log("disconnected", code=self._told)
        self._handshake = None
        self.server.protocol_disconnected(self)

    def _tell(self, code: int, reason: str, *, clean: bool) -> None:
        """Tell the application how the socket ended; only the first end counts."""
        if self._told is None:
            self._told = code
            disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason, "clean": clean}
            self.inbox.put(disconnect, 0)

    # To the socket

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """What autobahn writes: the handshake and, through `sendFrame`, control frames."""
        self.outlet.write(data)

    def sendFrame(self, opcode: int, payload: bytes = b"", **_: Any) -> None:
        """Write one control frame."""
        self.outlet.write(frame_header(opcode, len(payload)) + payload)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Begin or answer the closing handshake. Nothing is sent after it."""
        if self.state != self.STATE_OPEN:
            return
        payload = b"" if code is None else struct.pack("!H", code) + (reasonUtf8 or b"")
        if self._is_mid_frame:
            self._held_close = payload
        else:
            self.sendFrame(CLOSE, payload)
        self.state = self.STATE_CLOSING
        self._start_deadline()
        self.outlet.abandon()
        self.release(self.holds)  # the peer's answer has to be read; what comes before it is dropped
        self.source_is_gone()

    def dropConnection(self, abort: bool = False) -> None:
        """Close the transport, unless told to abort when all is written; bounded by `close_seconds`."""
        if self.state == self.STATE_CLOSED:
            return
        self.droppedByMe = True
        self.state = self.STATE_CLOSED
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

    # From the application

    async def send(self, message: Message) -> None:
        """ASGI `send`. Waits for room before it writes, so that whoever is cancelled has sent nothing.

        Raises `SocketClosed` when the socket is closing or closed, `ValueError` for a message that makes no
        sense.
        """
        kind = message.get("type")
        if kind == "websocket.send":
            while self.outlet.full and self.state == self.STATE_OPEN:
                await self.outlet.room()
            if self._incoming is not None and self._incoming.carries_message:
                raise ValueError("a message can't be sent into one that is being spliced")
            self._send_message(message)
            self._send_pong()
        elif kind == "websocket.close":
            self.close(message.get("code"), message.get("reason"))
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.http.response.start":
            self._start_denial(message)
        elif kind == "websocket.http.response.body":
            self._deny(message)
        else:
            raise ValueError(f"unknown message type {kind!r}")

    def _send_message(self, message: Message) -> None:
        if self.state != self.STATE_OPEN:
            if self.state == self.STATE_CONNECTING:
                raise ValueError("the socket has not been accepted, so nothing can be sent")
            raise SocketClosed("the socket is closed")
        data, text = message.get("bytes"), message.get("text")
        if data is not None and text is None:
            opcode = BINARY
        elif text is not None and data is None:
            opcode, data = TEXT, text.encode()
        else:
            raise ValueError("a websocket.send needs either bytes or text")
        header = frame_header(opcode, len(data))
        if len(data) <= JOINED_BYTES:
            self.outlet.write(header + data)
        else:
            self.transport.write(header)
            self.outlet.write(bytes(data))

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close on behalf of the application: with a close frame, or a 403 if it isn't accepted yet.

        What was sent before is delivered first. Raises `ValueError` for a code that a close frame can't
        carry. A reason is cut to what fits. Does nothing when the socket is closing already.
        """
        code = 1000 if code is None else code
        if not is_valid_code(code):
            raise ValueError(f"close code {code} isn't allowed in a close frame")
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", 403)
        elif self.state == self.STATE_OPEN:
            self._own_close = code, clip(reason or "")
            self.sendCloseFrame(code, self._own_close[1].encode())

    def _accept(self, message: Message) -> None:
        if self._handshake is None:
            raise SocketClosed("the socket is closed or was accepted before")
        subprotocol = message.get("subprotocol")
        if subprotocol is not None and subprotocol not in self.scope["subprotocols"]:
            raise ValueError("the subprotocol is none of those that the client offered")
        headers: dict[str, list[str]] = {}
        for name, value in checked_headers(message.get("headers", ())):
            headers.setdefault(name, []).append(value)
        handshake, self._handshake = self._handshake, None
        handshake.callback((subprotocol, headers))

    def _start_denial(self, message: Message) -> None:
        if self._handshake is None:
            raise SocketClosed("the socket is closed or was accepted")
        checked_headers(message.get("headers", ()))
        self._denial = {"body": b"", **message}

    def _deny(self, message: Message) -> None:
        """Refuse the upgrade with the application's own response (ASGI's denial response extension)."""
        if self._denial is None:
            raise ValueError("the response has not been started")
        if self._handshake is None:
            raise SocketClosed("the socket is closed")
        self._denial["body"] += message.get("body", b"")
        if message.get("more_body"):
            return
        status, body = int(self._denial["status"]), self._denial["body"]
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        lines = [f"HTTP/1.1 {status} {phrase}", "Connection: close", f"Content-Length: {len(body)}"]
        for name, value in checked_headers(self._denial.get("headers", ())):
            if name not in ("connection", "content-length"):
                lines.append(f"{name}: {value}")
        self._refuse(status, "\r\n".join([*lines, "", ""]).encode("ascii") + body)

    def finished(self, error: BaseException | None) -> None:
        """The application has ended, with `error` if it failed: nobody is left to close this socket."""
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", 500 if error else 403)
        else:
            self.close(INTERNAL_ERROR if error else 1000)

    # Spliceable

    def splice(self, peer: "WebSocket", meter: Meter) -> bool:
        """See `Spliceable.splice`."""
        half_received = self.inside_message or self.current_frame is not None
        busy = half_received or self.holds or len(self.inbox) or self._outgoing is not None
        if busy or not (self.state == peer.state == self.STATE_OPEN):
            return False
        self._outgoing = outgoing = Splice(self, peer, meter, self.settings.max_message_bytes)
        peer.take_from(outgoing)
        self.dataReceived = outgoing.take  # type: ignore[method-assign]
        # The beginning of a frame, which autobahn keeps until its header is complete.
        begun, self.data = bytes(self.data), b""
        if begun:
            outgoing.take(begun)
        return True

    def unsplice(self) -> None:
        """See `Spliceable.unsplice`."""
        if self._outgoing is not None:
            self._outgoing.stop()

    def take_from(self, incoming: Splice) -> None:
        """From now on `incoming` writes here, and waits when there's no room."""
        self._incoming = incoming
        self.outlet.on_room = functools.partial(incoming.source.release, Hold.PEER)
        if self.outlet.full:
            incoming.source.wait_for_peer()

    def wait_for_peer(self) -> None:
        """The peer has no room: don't read."""
        self.hold(Hold.PEER)

    @property
    def takes_frames(self) -> bool:
        """Whether a splice may write here: open, or closing but inside a frame that has to be finished."""
        return self.state == self.STATE_OPEN or self._held_close is not None

    @property
    def holds_frames(self) -> bool:
        """Whether something waits for the end of a half forwarded frame."""
        return self._held_close is not None or self._pong is not None

    @property
    def _is_mid_frame(self) -> bool:
        return self._incoming is not None and self._incoming.mid_frame

    def frame_ended(self) -> None:
        """The frame that was half forwarded here is whole: write what had to wait."""
        self._send_pong()
        if self._held_close is not None:
            payload, self._held_close = self._held_close, None
            self.sendFrame(CLOSE, payload)
            if self._drop_afterwards:
                self.dropConnection(abort=False)

    def source_is_gone(self) -> None:
        """If the rest of a half forwarded frame can't come any more, nothing can follow it: end TCP."""
        if self._held_close is not None and self._incoming is not None and self._incoming.dead:
            self._held_close = None
            self.dropConnection(abort=False)

    # Time-outs

    def check(self, now: float) -> None:
        """Called every second with the event loop's time: keepalive, stall and a client not accepted yet."""
        server = self.server
        if self.state == self.STATE_CONNECTING:
            if 0 <= server.websocket_connect_timeout < now - self.opened_at:
                self.failHandshake("", 503)
        elif self.state == self.STATE_OPEN:
            self._send_pong()
            if self.holds:
                # Its pong can't be read, so there is no deadline; the ping still makes the host of a peer
                # that is gone answer with a reset.
                self._awaits_pong = False
            elif self._awaits_pong:
                if self.heard_at >= self.pinged_at:
                    self._awaits_pong = False
                elif 0 < server.ping_timeout < now - self.pinged_at:
                    self.dropConnection(abort=True)
                    return
            quiet = now - max(self.heard_at, self.pinged_at)
            # Unsent bytes do what a ping does.
            if quiet >= server.ping_interval and not self.outlet.unsent_bytes and not self._is_mid_frame:
                self.pinged_at = now
                self._awaits_pong = not self.holds
                self.sendFrame(PING)

    # For whoever watches

    @property
    def is_held(self) -> bool:
        """Whether the socket isn't read just now, so that nobody sees its end."""
        return bool(self.holds)

    @property
    def unsent_bytes(self) -> int:
        """See `Spliceable.unsent_bytes`."""
        return self.outlet.unsent_bytes

    @property
    def taken_bytes(self) -> int:
        """See `Spliceable.taken_bytes`."""
        return self.outlet.taken_bytes

    def _log(self, action: str, **details: Any) -> None:
        client = self.scope.get("client")
        self.server.log_action(
            "websocket",
            action,
            {
                "path": self.scope["path"],
                "client": f"{client[0]}:{client[1]}" if client else None,
                "seconds": self.clock() - self.opened_at,
                **details,
            },
        )


def checked_headers(headers: Any) -> list[tuple[str, str]]:
    """Names in lower case and values, as text. Raises `ValueError` for what would break the response."""
    checked = []
    for name, value in headers:
        text = name.decode("ascii").lower(), value.decode("ascii")
        if not text[0] or not all(part.isprintable() for part in text):
            raise ValueError("a response header has a control character or no name")
        checked.append(text)
    return checked


class WebSocketFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes `WebSocket`s of one server."""

    protocol = WebSocket

    def __init__(self, server: Any) -> None:
        super().__init__(server=server.server_name)
        limit = conf.current().max_message_bytes
        self.setProtocolOptions(
            maxMessagePayloadSize=limit,
            maxFramePayloadSize=limit,
            allowNullOrigin=True,
            # These are done by `WebSocket` itself.
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
        )
        self._server = server

    def buildProtocol(self, addr: Any) -> WebSocket:
        """A `WebSocket` that knows its server."""
        socket: WebSocket = super().buildProtocol(addr)
        socket.server = self._server
        return socket
