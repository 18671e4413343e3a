"""The ASGI face of a WebSocket: the upgrade, `receive` and `send`, and what splices two of them."""

import asyncio
import functools
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet import defer

from relay import conf
from relay.links import SPLICE_EXTENSION, Meter
from relay.rules.flow import WaterMarks
from relay.rules.frames import BINARY, TEXT, frame_header
from relay.servers.daphne.http import checked_headers, final_response
from relay.servers.daphne.protocol import Hold, Protocol, is_valid_code
from relay.servers.daphne.splice import Splice
from relay.servers.inbox import Inbox, Message

INTERNAL_ERROR = 1011

JOINED_BYTES = 16 * 1024
"""Up to this size, header and payload are joined to one write; above it the copy costs more than a write."""


class SocketClosed(OSError):
    """The application sends to a socket that is closing or closed (ASGI, since version 2.4)."""


class WebSocket(Protocol):
    """One connection and its application. The request that is upgraded sets `scope` and `server`."""

    scope: dict[str, Any]
    _splice_wanted = False

    # The upgrade

    def connectionMade(self) -> None:
        super().connectionMade()
        settings = self.settings
        self.inbox = Inbox(
            WaterMarks(settings.read_high_bytes, settings.read_low_bytes),
            pause=functools.partial(self.hold, Hold.APPLICATION),
            resume=functools.partial(self.release, Hold.APPLICATION),
        )
        self.ended: asyncio.Future[None] = self.server.loop.create_future()
        self._opened = False
        self._handshake: Any = None  # resolved when the application accepts or refuses
        self._denial: Message | None = None
        self._told: int | None = None  # the close code that the application was told

    def onConnect(self, request: Any) -> Any:
        """The request is in order: start the application, which accepts or refuses."""
        self._request_read = True
        self.scope["subprotocols"] = request.protocols
        self.scope["extensions"] = {"websocket.http.response": {}}
        self.scope["extensions"][SPLICE_EXTENSION] = {"connection": self}
        self._handshake = defer.Deferred()
        self.server.start_application(self, self.scope, self.inbox.get, self.send)
        self.inbox.put({"type": "websocket.connect"}, 0)
        return self._handshake

    def onOpen(self) -> None:
        self._opened = True
        self._log("connected")
        # Only the handshake needed these; a waiting socket should cost little, and keep no token.
        for name in [name for name in self.__dict__ if name.startswith("http_")]:
            del self.__dict__[name]
        self.release(Hold.UPGRADE)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Answer the upgrade request with an HTTP error, without `reason`: it may repeat the request."""
        self._refuse(code, list(responseHeaders or ()))

    def _refuse(self, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> None:
        self.wasNotCleanReason = f"refused with {status}"
        self._handshake = None
        self._log("rejected", status=status)
        self.outlet.write(final_response(status, headers, body))
        self.dropConnection(abort=False)

    # From the protocol

    def on_message(self, payload: bytes, is_binary: bool) -> None:
        """Queue it; past the high mark the socket isn't read."""
        message: Message
        if is_binary:
            message = {"type": "websocket.receive", "bytes": payload}
        else:
            message = {"type": "websocket.receive", "text": payload.decode()}
        self.inbox.put(message, len(payload))
        if self._splice_wanted:
            self.hold(Hold.SPLICE)

    def on_end(self, code: int, reason: str, clean: bool) -> None:
        """Tell the application, after what it has not taken yet."""
        self._told = code
        self.inbox.put({"type": "websocket.disconnect", "code": code, "reason": reason, "clean": clean}, 0)
        self.ended.set_result(None)

    def on_gone(self) -> None:
        """The application may go on with what is queued."""
        if self._opened:
            self._log("disconnected", code=self._told)
        self._handshake = None
        self.server.protocol_disconnected(self)

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
            if self._incoming is not None:
                raise ValueError("the socket is spliced: only its peer's frames may be sent on it")
            self._send_message(message)
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
        else:
            self.close_with(code, reason or "")

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
        denial = self._denial
        self._refuse(int(denial["status"]), checked_headers(denial.get("headers", ())), denial["body"])

    def finished(self, error: BaseException | None) -> None:
        """The application has ended, with `error` if it failed: nobody is left to close this socket."""
        if self.state == self.STATE_CONNECTING:
            self.failHandshake("", 500 if error else 403)
        else:
            self.close(INTERNAL_ERROR if error else 1000)

    # Spliceable

    def splice(self, peer: "WebSocket", meter: Meter) -> bool:
        """See `Spliceable.splice`.

        A sender that never pauses has always half a message here, or some in the queue. So the first attempt
        that comes to nothing has the socket read to the end of a message and no further until the next one.
        """
        if not self.settings.splice or self._outgoing is not None:
            return False
        if not (self.state == peer.state == self.STATE_OPEN):
            self._splice_wanted = False
            self.release(Hold.SPLICE)
            return False
        half_received = self.inside_message or self.current_frame is not None
        if half_received or self.holds & ~Hold.SPLICE or len(self.inbox):
            self._splice_wanted = True
            return False
        self._outgoing = outgoing = Splice(self, peer, meter, self.settings.max_message_bytes)
        peer.take_from(outgoing)
        self.dataReceived = outgoing.take  # type: ignore[method-assign]
        # What autobahn has not parsed: the beginning of a header, or all that came after the last message.
        unparsed, self.data = bytes(self.data), b""
        if unparsed:
            outgoing.take(unparsed)
        self.release(Hold.SPLICE)
        return True

    def unsplice(self) -> asyncio.Future[None] | None:
        """See `Spliceable.unsplice`."""
        if self._outgoing is None:
            return None
        target = self._outgoing.target
        target.wire.stop()
        if not target.wire.unfinished:
            return None
        whole: asyncio.Future[None] = self.server.loop.create_future()
        target.when_frame_whole(functools.partial(whole.set_result, None))
        return whole

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
        # Else autobahn copies each of its thirty options into each socket.
        for name in WebSocket.CONFIG_ATTRS:
            option = getattr(self, name)
            if not callable(option):
                setattr(WebSocket, name, option)

    def buildProtocol(self, addr: Any) -> WebSocket:
        """A `WebSocket` that knows its server."""
        socket: WebSocket = super().buildProtocol(addr)
        socket.server = self._server
        return socket
