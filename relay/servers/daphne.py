"""Daphne with flow control both ways, faithful frames and closes, and a drain on SIGTERM.

Plain Daphne has an unbounded queue to the application and an unbounded send buffer, drops empty frames
and close reasons, refuses most close codes, and lets every connection fall at SIGTERM. `install` puts
`RelayServer` in its place, so that the plain `daphne` command has none of that.
"""

import asyncio
import functools
import json
import logging
import signal
import socket
import struct
import sys
import time
from datetime import UTC, datetime
from typing import Any

import daphne.cli
import daphne.server
from autobahn.websocket.protocol import FrameHeader
from autobahn.websocket.types import ConnectionDeny
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor
from twisted.internet.interfaces import IPushProducer
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    STDLibLogObserver,
    globalLogPublisher,
)
from zope.interface import implementer

from relay import conf, servers
from relay.closing import ABNORMAL, NO_STATUS, clip
from relay.flow import WaterMarks
from relay.frames import CLOSE, Control
from relay.links import SPLICE_EXTENSION, Meter
from relay.servers.inbox import Inbox, Message
from relay.servers.splice import Splice

logger = logging.getLogger(__name__)
access = logging.getLogger("relay.access")

ASGI = {"version": "3.0", "spec_version": "2.4"}
"""Since 2.4 a send after the disconnect raises `OSError`."""

TEXT, BINARY = 0x81, 0x82
"""First byte of a text and of a binary frame with FIN (RFC 6455 section 5.2)."""

READ_BYTES = 256 * 1024
"""Read at once from a spliced socket: measured with frames of 64 KiB and 1 MiB, a quarter less CPU a byte
than reads of 64 KiB, and no gain beyond."""

REGISTERED_LATER = frozenset({1012, 1013, 1014})
"""Close codes that IANA registered after RFC 6455, and that autobahn takes for a violation."""


def install(*, default_port: int | None = None) -> None:
    """Make `daphne` on the command line use `RelayServer`, and listen on `default_port` unless told a port.

    Has to be called while Daphne imports the application: it looks both up after that.
    """
    daphne.cli.CommandLineInterface.server_class = RelayServer
    if default_port is not None:
        daphne.cli.DEFAULT_PORT = default_port


def header(first: int, size: int) -> bytes:
    """The header of an unmasked frame of `size` bytes of payload (RFC 6455 section 5.2)."""
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)


@implementer(IPushProducer)
class RelayWebSocketProtocol(WebSocketProtocol):  # type: ignore[misc] # Daphne has no types
    """One WebSocket. It is the producer of its own transport, which tells it when there is room."""

    def connectionMade(self) -> None:
        super().connectionMade()
        settings = conf.current()
        self.server = self.factory.server_class
        self.inbox = Inbox(
            WaterMarks(settings.read_high_bytes, settings.read_low_bytes), self._pause, self._resume
        )
        self._room = asyncio.Event()
        self._room.set()
        # The close that the application was or will be told: code, reason, clean. None while open.
        self.ending: tuple[int, str, bool] | None = None
        self._denial: Message | None = None
        self.gone = False
        # Once spliced: where the frames go that come in here, and whose frames are written here.
        self._outgoing: Splice | None = None
        self._incoming: Splice | None = None
        # Control frames that wait for the end of a half forwarded frame, as opcode and payload.
        self._held: list[tuple[int, bytes]] = []
        self._payload_written = 0
        # The bare socket, to send at once what it takes; None under TLS.
        self._socket = self.transport.getHandle() if isinstance(self.transport, Connection) else None
        # The HTTP channel has the place of the producer until now: it would pause *reading* when there's
        # no room to write, and never tell us.
        self.transport.unregisterProducer()
        self._bound_write_buffer(settings.write_high_bytes)
        self.transport.registerProducer(self, True)

    def _bound_write_buffer(self, size: int) -> None:
        """Let the transport ask for a pause at `size` unsent bytes; under TLS the socket is a level down."""
        transport = self.transport
        while transport is not None:
            if hasattr(transport, "bufferSize"):
                transport.bufferSize = size
            transport = getattr(transport, "transport", None)

    # IPushProducer: the transport has no room, has room again, is gone

    def pauseProducing(self) -> None:
        """More bytes are unsent than the high mark: senders wait."""
        self._room.clear()
        if self._incoming is not None:
            self._incoming.source.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The kernel has taken all: senders go on."""
        self._room.set()
        if self._incoming is not None:
            self._incoming.source.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is gone: senders are woken, and find the socket closed."""
        self._room.set()

    # From the socket

    def onConnect(self, request: Any) -> Any:
        self.server = self.factory.server_class
        if any(not value.isascii() for value in request.headers.values()):
            # Daphne would answer with a traceback in the log and a 500.
            self.server.protocol_connected(self)
            self.request, self.client_addr, self.path = request, None, b""
            raise ConnectionDeny(code=400, reason="Bad Request")
        return super().onConnect(request)

    def dataReceived(self, data: bytes) -> None:
        if self._outgoing is None:
            # Straight on: autobahn formats a debug line for each read here, whether it's wanted or not.
            self._dataReceived(data)
            return
        controls, failure = self._outgoing.feed(data)
        if self.autoPingTimeoutCall is not None:
            self._cancelAutoPingTimeoutCall()
        for control in controls:
            self._take_control(control)
        if failure is not None:
            self._fail_connection(failure.code, failure.text)
            self._no_more_writes()

    def _take_control(self, control: Control) -> None:
        """Have autobahn handle a control frame as if it had read it."""
        if self.state == self.STATE_CLOSED:
            return
        size = len(control.payload)
        self.current_frame = FrameHeader(control.opcode, True, 0, size, None)
        self.control_frame_data = [control.payload]
        self.processControlFrame()
        self.current_frame = None

    def _no_more_writes(self) -> None:
        """After a failure: the client sees the close frame and the end, and what it still sends is read and
        thrown away, as closing with unread data would make the kernel send a reset instead."""
        self.transport.unregisterProducer()
        if hasattr(self.transport, "loseWriteConnection"):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.ending is not None:
            return
        self.last_ping = time.time()
        if isBinary:
            message = {"type": "websocket.receive", "bytes": payload}
        else:
            message = {"type": "websocket.receive", "text": payload.decode()}
        self.inbox.put(message, len(payload))

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> Any:
        told = code
        if code in REGISTERED_LATER:
            code = 1000
        # While open: the peer begins the closing handshake. Else this is the answer to ours.
        begins = self.state == self.STATE_OPEN
        done = super().onCloseFrame(code, reasonRaw)
        if begins and not self.failedByMe:
            self._end(NO_STATUS if told is None else told, self.remoteCloseReason or "", clean=True)
        return done

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        # RFC 6455 section 7.1.7: the peer broke the rules.
        self._end(code, reason, clean=False)
        super()._fail_connection(code, reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.gone = True
        self._end(ABNORMAL, "", clean=False)
        self._room.set()
        self.server.protocol_disconnected(self)
        self.server.log_action("websocket", "disconnected", self.logged())

    def _end(self, code: int, reason: str, *, clean: bool) -> None:
        """Tell the application that this socket is closed; only the first reason counts."""
        if self.ending is None:
            self.ending = (code, reason, clean)
            disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason, "clean": clean}
            self.inbox.put(disconnect, 0)
            self._room.set()
            # Whatever comes now is thrown away, but the peer's answer to a close has to be read.
            self._resume()

    def _pause(self) -> None:
        if self.ending is None:
            self.transport.pauseProducing()

    def _resume(self) -> None:
        # A transport that is closing or closed ignores it.
        self.transport.resumeProducing()

    # From the application

    async def reply(self, message: Message) -> None:
        """ASGI `send`. Waits for room before it writes, so that whoever is cancelled has not sent.

        Raises `OSError` when the socket is closing or closed.
        """
        kind = message["type"]
        if kind == "websocket.send":
            if self.state == self.STATE_CONNECTING:
                raise ValueError("the socket has not been accepted, so nothing can be sent")
            if not self._room.is_set():
                await self._room.wait()
            if self.ending is not None or self.state != self.STATE_OPEN:
                raise OSError("the socket is closed")
            data, first = message.get("bytes"), BINARY
            if data is None:
                data, first = message["text"].encode(), TEXT
            self.write([header(first, len(data)) + data], len(data))
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._close(message.get("code", 1000), message.get("reason") or "")
        elif kind == "websocket.http.response.start":
            self._denial = {**message, "body": b""}
        elif kind == "websocket.http.response.body":
            self._deny(message)
        else:
            raise ValueError(f"unknown message type {kind}")

    def write(self, parts: list[bytes], payload_bytes: int) -> None:
        """Hand frames to the transport; `payload_bytes` of them are payload of data frames."""
        self._payload_written += payload_bytes
        if self._socket is not None and not self.unsent_bytes and self.transport.connected:
            parts = self._send_now(self._socket, parts)
        if parts:
            self.transport.writeSequence(parts)

    @staticmethod
    def _send_now(sock: socket.socket, parts: list[bytes]) -> list[bytes]:
        """Give the kernel what it takes at once; gives what is left.

        Twisted would wait for the event loop to say that the socket is writable: two changes to its poll
        set, one more turn and a copy for each write, and a socket with nothing unsent nearly always is.
        """
        try:
            sent = sock.sendmsg(parts) if len(parts) > 1 else sock.send(parts[0])
        except OSError:  # no room, or gone: Twisted finds out which
            return parts
        for index, part in enumerate(parts):
            if sent < len(part):
                return [part[sent:], *parts[index + 1 :]]
            sent -= len(part)
        return []

    # Spliceable

    def splice(self, peer: "RelayWebSocketProtocol", meter: Meter) -> bool:
        """See `Spliceable.splice`."""
        half_received = self.inside_message or self.current_frame is not None
        if half_received or len(self.inbox) or not (self.takes_frames and peer.takes_frames):
            return False
        self._outgoing = Splice(self, peer, meter, conf.current().max_message_bytes)
        peer.take_from(self._outgoing)
        if self._socket is not None:
            self.transport.doRead = functools.partial(self._read, self._socket)
        # The beginning of a frame that autobahn keeps until its header is complete.
        begun = bytes(self.data)  # type: ignore[has-type] # autobahn's, which has no types
        self.data = b""
        if begun:
            self.dataReceived(begun)
        return True

    def _read(self, sock: socket.socket) -> Any:
        """In place of Twisted's `doRead`, whose read size is the same number as its write high mark."""
        try:
            data = sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.dataReceived(data)
        return None

    def take_from(self, incoming: Splice) -> None:
        """From now on `incoming` writes here, and pauses when there's no room."""
        self._incoming = incoming
        if not self._room.is_set():
            incoming.source.transport.pauseProducing()

    @property
    def takes_frames(self) -> bool:
        """Whether data frames may be written: open, or closing but inside a frame that has to be finished."""
        return (self.ending is None and self.state == self.STATE_OPEN) or bool(self._held)

    @property
    def holding(self) -> bool:
        """Whether control frames wait for the end of a frame."""
        return bool(self._held)

    def release(self) -> None:
        """The frame that was being forwarded is whole: write what had to wait."""
        held, self._held = self._held, []
        for opcode, payload in held:
            super().sendFrame(opcode, payload)

    def sendFrame(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        """Autobahn's way to write control frames; never inside a frame that is half forwarded."""
        if self._incoming is None or not self._incoming.mid_frame:
            super().sendFrame(opcode, payload, **options)
        elif opcode == CLOSE and self._incoming.dead:
            # The rest of the frame will never come, so nothing can follow it.
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        else:
            self._held.append((opcode, payload))

    @property
    def unsent_bytes(self) -> int:
        """See `Spliceable.unsent_bytes`."""
        transport, unsent = self.transport, 0
        while transport is not None:  # under TLS there is a buffer on each level
            unsent += len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
            unsent += getattr(transport, "_tempDataLen", 0)
            transport = getattr(transport, "transport", None)
        return unsent

    @property
    def taken_bytes(self) -> int:
        """See `Spliceable.taken_bytes`."""
        return self._payload_written - self.unsent_bytes

    def _accept(self, message: Message) -> None:
        if not hasattr(self, "handshake_deferred") or self.ending is not None:
            raise OSError("the socket is closed")
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in message.get("headers", ())
        }
        self.handshake_deferred.callback((message.get("subprotocol"), headers))
        del self.handshake_deferred

    def _close(self, code: int, reason: str) -> None:
        if self.state == self.STATE_CONNECTING:
            if hasattr(self, "handshake_deferred"):
                self.serverReject()
            return
        if self.ending is None:
            # Not through sendClose, which refuses most codes and drops the reason.
            self.sendCloseFrame(code=code, reasonUtf8=clip(reason).encode())
            self._end(code, reason, clean=True)

    def _deny(self, message: Message) -> None:
        """Refuse the upgrade with a status and body of the application's (ASGI denial response)."""
        if self._denial is None or not hasattr(self, "handshake_deferred"):
            raise OSError("the socket is closed")
        self._denial["body"] += message.get("body", b"")
        if message.get("more_body"):
            return
        denial, failed = self._denial, self.handshake_deferred
        del self.handshake_deferred
        body = denial["body"].decode("latin-1")
        failed.errback(ConnectionDeny(code=denial["status"], reason=body.strip()))

    def finished(self, error: BaseException | None) -> None:
        """The application has ended, with `error` if it failed: nobody is left to close this socket."""
        if hasattr(self, "handshake_deferred"):
            self.handle_exception(error) if error else self.serverReject()
        elif self.ending is None:
            self._close(1011 if error else 1000, "internal error" if error else "")

    # Time-outs

    def check_timeouts(self) -> None:
        """Called by Daphne every two seconds: the upgrade's deadline, and the keepalive."""
        now = time.time()
        if self.state == self.STATE_CONNECTING:
            if now - self.socket_opened > self.server.websocket_connect_timeout and hasattr(
                self, "handshake_deferred"
            ):
                self.serverReject()
            return
        if self.state != self.STATE_OPEN:
            return
        paused = self.inbox.paused or (self._outgoing is not None and not self._outgoing.target.has_room)
        if paused and self.autoPingTimeoutCall is not None:
            # Its pong can't be read while we don't read: no deadline.
            self._cancelAutoPingTimeoutCall()
        if now - self.last_ping > self.server.ping_interval:
            self.last_ping = now
            if paused:
                # A host that is there, but knows nothing of the connection any more, answers with a reset.
                self.sendPing()
            else:
                self._sendAutoPing()

    @property
    def has_room(self) -> bool:
        """Whether fewer bytes than the high mark are unsent."""
        return self._room.is_set()

    def dropConnection(self, abort: bool = False) -> None:
        if not self.wasClean:
            self._end(ABNORMAL, "", clean=False)
        super().dropConnection(abort)

    def logged(self) -> dict[str, Any]:
        """What the access log shows of this connection."""
        client = ":".join(map(str, self.client_addr)) if self.client_addr else None
        return {"path": self.request.path, "client": client}


class RelayWebSocketFactory(WebSocketFactory):  # type: ignore[misc]
    """Makes `RelayWebSocketProtocol`s."""

    protocol = RelayWebSocketProtocol


class RelayServer(daphne.server.Server):  # type: ignore[misc]
    """Daphne's server with the connections above, JSON access lines and a drain."""

    def __init__(self, *args: Any, **options: Any) -> None:
        settings = conf.current()
        options["websocket_timeout"] = -1  # the relay has a longest duration of its own
        options["websocket_max_message_size"] = settings.max_message_bytes
        options["websocket_max_frame_size"] = settings.max_message_bytes
        super().__init__(*args, **options)
        self.settings = settings
        self.exit_status = 0
        self._told_ready = options.get("ready_callable")
        self.ready_callable = self._before_the_reactor_runs
        self._ports: list[Any] = []
        self._signals = 0
        self._handle_signals = options.get("signal_handlers", True)
        self.signal_handlers = False

    def run(self) -> None:
        super().run()
        if self.exit_status:
            sys.exit(self.exit_status)

    def _before_the_reactor_runs(self) -> None:
        self.ws_factory = RelayWebSocketFactory(self, server=self.server_name)
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
            failByDrop=False,
            echoCloseCodeReason=True,
            closeHandshakeTimeout=self.settings.close_seconds,
        )
        # Daphne sends Twisted's log to nowhere, and with it every error raised inside a protocol.
        critical = LogLevelFilterPredicate(defaultLogLevel=LogLevel.critical)
        observer = FilteringLogObserver(STDLibLogObserver(__name__), [critical])
        globalLogPublisher.addObserver(observer)
        if self._handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                reactor._asyncioEventloop.add_signal_handler(number, self._on_signal, number)
        if self._told_ready:
            self._told_ready()

    # Connections and their applications

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        if not isinstance(protocol, RelayWebSocketProtocol):
            return super().create_application(protocol, scope)
        scope["asgi"] = ASGI
        scope["extensions"] = {"websocket.http.response": {}}
        if self.settings.splice:
            scope["extensions"][SPLICE_EXTENSION] = {"connection": protocol}
        application = self.application(scope=scope, receive=protocol.inbox.get, send=protocol.reply)
        task = asyncio.ensure_future(application)
        self.connections[protocol]["application_instance"] = task
        task.add_done_callback(functools.partial(self._application_done, protocol))
        return protocol.inbox

    def _application_done(self, protocol: RelayWebSocketProtocol, task: asyncio.Task[None]) -> None:
        """React at once rather than at the next poll: the socket of an ended application is closed."""
        details = self.connections.get(protocol, {})
        details.pop("application_instance", None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("Exception inside application: %s", error, exc_info=error)
        protocol.finished(error)
        if details.get("gone"):
            super().protocol_disconnected(protocol)

    def protocol_disconnected(self, protocol: Any) -> None:
        # Daphne cancels an application ten seconds after this, whatever it still has to deliver. A
        # WebSocket's is left to end by itself: the relay has a time-out for each thing it waits for.
        details = self.connections.get(protocol, {})
        if isinstance(protocol, RelayWebSocketProtocol) and "application_instance" in details:
            details["gone"] = True
        elif details:
            super().protocol_disconnected(protocol)

    # The end

    def listen_success(self, port: Any) -> None:
        self._ports.append(port)
        super().listen_success(port)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        if self._signals == 1:
            logger.info(
                "signal %d: draining, for %g s at most; again to stop at once",
                number,
                self.settings.drain_seconds,
            )
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self.exit_status = 128 + number
            self.stop()

    async def _drain(self) -> None:
        """Stop listening, let the application drain, deliver what is written, then stop the reactor."""
        seconds = self.settings.drain_seconds
        try:
            async with asyncio.timeout(seconds):
                for port in self._ports:
                    port.stopListening()
                await servers.drain(seconds)
                while any(  # noqa: ASYNC110 - once, at the very end
                    "disconnected" not in details for details in self.websockets()
                ):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.warning("draining took longer than %g s; what is left is cut off", seconds)
        except Exception:
            logger.exception("draining failed")
        self.stop()

    def websockets(self) -> list[dict[str, Any]]:
        """Daphne's details of each WebSocket that is there."""
        return [d for p, d in self.connections.items() if isinstance(p, RelayWebSocketProtocol)]

    def kill_all_applications(self) -> Any:
        tasks = [d["application_instance"] for d in self.connections.values() if "application_instance" in d]
        for task in tasks:
            task.cancel()
        return defer.Deferred.fromFuture(asyncio.gather(*tasks, return_exceptions=True))

    # The access log

    def log_action(self, protocol: str, action: str, details: dict[str, Any]) -> None:
        """One JSON object a line; never a query string, which may hold a token."""
        if self.action_logger is None or action == "connecting":
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"event": f"{protocol}_{action}", "timestamp": now, "path": details["path"].partition("?")[0]}
        line |= {name: details[name] for name in ("client", "method", "status", "size") if name in details}
        if "time_taken" in details:
            line["seconds"] = round(details["time_taken"], 6)
        access.info(json.dumps(line))
