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
import struct
import sys
import time
from datetime import UTC, datetime
from typing import Any

import daphne.cli
import daphne.server
from autobahn.websocket.types import ConnectionDeny
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer, reactor
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from relay import conf, servers
from relay.closing import ABNORMAL, NO_STATUS, clip
from relay.flow import WaterMarks
from relay.servers.inbox import Inbox, Message

logger = logging.getLogger(__name__)
access = logging.getLogger("relay.access")

ASGI = {"version": "3.0", "spec_version": "2.4"}
"""Since 2.4 a send after the disconnect raises `OSError`."""

TEXT, BINARY = 0x81, 0x82
"""First byte of a text and of a binary frame with FIN (RFC 6455 section 5.2)."""

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

    def resumeProducing(self) -> None:
        """The kernel has taken all: senders go on."""
        self._room.set()

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
        # Straight on: autobahn formats a debug line for each read here, whether it's wanted or not.
        self._dataReceived(data)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.ending is not None:
            return
        self.last_ping = self.clock()
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
            data = message.get("bytes")
            if data is not None:
                self.transport.write(header(BINARY, len(data)) + data)
            else:
                data = message["text"].encode()
                self.transport.write(header(TEXT, len(data)) + data)
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

    @staticmethod
    def clock() -> float:
        """Seconds, for the keepalive."""
        return time.time()

    def check_timeouts(self) -> None:
        """Called by Daphne every two seconds."""
        if self.inbox.paused and self.state == self.STATE_OPEN:
            # Its pong can't be read while we don't read: no deadline. The ping itself still shows
            # a peer whose host answers with a reset.
            if self.autoPingTimeoutCall is not None:
                self._cancelAutoPingTimeoutCall()
            if self.clock() - self.last_ping > self.server.ping_interval:
                self.last_ping = self.clock()
                self.sendPing()
            return
        super().check_timeouts()

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
