"""The server: connections and their applications, what it looks at each second, how it starts and ends."""

import asyncio
import functools
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import daphne.server  # installs the reactor: before any other import of one
from twisted.internet import defer, reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    STDLibLogObserver,
    globalLogBeginner,
)

from relay import conf, servers
from relay.rules.closing import Close, CloseReason
from relay.servers.daphne import access
from relay.servers.daphne.http import Factory, Request
from relay.servers.daphne.outlet import socket_of
from relay.servers.daphne.websocket import SocketClosed, WebSocket, WebSocketFactory
from relay.servers.inbox import Message

logger = logging.getLogger("relay.servers.daphne")

CHECK_SECONDS = 1.0
"""How often connections are looked at: keepalive, stalled peers, applications that don't end."""

MARGIN_SECONDS = 0.5
"""Kept at the end of a drain for cancelling what is left, in seconds; a tenth of a shorter drain."""

ASGI = {"version": "3.0", "spec_version": "2.4"}
"""Since 2.4 a send after the disconnect raises `OSError`."""


class RelayServer(daphne.server.Server):  # type: ignore[misc] # Daphne has no types
    """Daphne's server with `WebSocket`s, JSON access lines and a drain.

    Takes Daphne's arguments. Its own settings take the place of the largest message, the longest
    connection, how long an ended connection's application may go on, and the format of the access log.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.settings = settings = conf.current()
        self.loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        # An application may still work off what its connection left in the queue. It's cancelled when it
        # takes nothing for as long as a peer may, and a close with it.
        self.application_close_timeout = settings.close_seconds + settings.stall_seconds
        self.websocket_timeout = -1  # the relay has a longest duration of its own
        self.ports: list[Any] = []
        self._signalled = False
        self._draining: asyncio.Task[None] | None = None
        self._reaped = asyncio.Event()

    def run(self) -> None:
        """Serve until told to stop by a signal or `stop`."""
        self.connections: dict[Any, dict[str, Any]] = {}
        self.http_factory = Factory(self)
        self.ws_factory = WebSocketFactory(self)
        # Daphne throws all of Twisted's log away, and with it every error raised inside a protocol.
        least = LogLevel.debug if self.verbosity > 1 else LogLevel.critical
        observer = FilteringLogObserver(
            STDLibLogObserver("daphne.server"), [LogLevelFilterPredicate(defaultLogLevel=least)]
        )
        globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)
        asyncio.set_event_loop(self.loop)
        if self.verbosity >= 3:
            self.loop.set_debug(True)
        for description in self.endpoints:
            logger.info("listening on endpoint %s, with flow control", description)
            listener = serverFromString(reactor, str(description)).listen(self.http_factory)
            listener.addCallbacks(self.listen_success, self.listen_error)
            self.listeners.append(listener)
        if self.abort_start:
            return
        reactor.addSystemEventTrigger("before", "shutdown", self.kill_all_applications)
        reactor.callLater(CHECK_SECONDS, self.check)
        if self.signal_handlers:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
        reactor.callLater(0, servers.start)
        if self.ready_callable:
            self.ready_callable()
        reactor.run(installSignalHandlers=False)

    def listen_success(self, port: Any) -> None:
        """Remember the port, to close it first of all when draining."""
        self.ports.append(port)
        super().listen_success(port)

    # Connections and their applications

    def create_application(self, protocol: Request, scope: dict[str, Any]) -> asyncio.Queue[Message]:
        """Start the application of an HTTP request; gives the queue of its events."""
        events: asyncio.Queue[Message] = asyncio.Queue()
        scope["asgi"] = ASGI
        self.start_application(protocol, scope, events.get, functools.partial(self.handle_reply, protocol))
        return events

    def start_application(
        self,
        protocol: Request | WebSocket,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Run the application for a connection, which hears of its end at once."""
        scope["asgi"] = ASGI
        if isinstance(protocol, WebSocket):
            self.protocol_connected(protocol)
        task = self.loop.create_task(self.application(scope, receive, send))
        self.connections[protocol]["application_instance"] = task
        task.add_done_callback(functools.partial(self._application_ended, protocol))

    def protocol_disconnected(self, protocol: Any) -> None:
        """The connection is gone, or the response complete; its application may go on for a while."""
        details = self.connections.get(protocol)
        if details is not None:
            details.setdefault("disconnected", self.loop.time())
            self._reap(protocol)

    def _application_ended(self, protocol: Request | WebSocket, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, SocketClosed):
            error = None  # it went on sending when its socket was gone, which is no mistake
        if isinstance(error, Exception):
            logger.error("Exception inside application: %s", error, exc_info=error)
        details = self.connections[protocol]
        del details["application_instance"]
        if "disconnected" not in details:
            if isinstance(protocol, WebSocket):
                protocol.finished(error)
            else:
                protocol.finished_early(error)
        self._reap(protocol)

    def _reap(self, protocol: Any) -> None:
        details = self.connections.get(protocol)
        if details is not None and "disconnected" in details and "application_instance" not in details:
            del self.connections[protocol]
            self._reaped.set()

    def websockets(self) -> list[WebSocket]:
        """Those there are now."""
        return [protocol for protocol in self.connections if isinstance(protocol, WebSocket)]

    # Once a second

    def check(self) -> None:
        """Look at each connection."""
        now = self.loop.time()
        held = []
        for protocol, details in list(self.connections.items()):
            if "disconnected" in details:
                self._cancel_idle_application(protocol, details, now)
            elif isinstance(protocol, WebSocket):
                protocol.check(now)
                if protocol.holds:
                    held.append(protocol)
            else:
                protocol.check_timeouts()
        for protocol in hung_up(held):
            protocol.transport.abortConnection()
        reactor.callLater(CHECK_SECONDS, self.check)

    def _cancel_idle_application(self, protocol: Any, details: dict[str, Any], now: float) -> None:
        if isinstance(protocol, WebSocket) and details.get("taken") != protocol.inbox.taken:
            details["taken"] = protocol.inbox.taken
            details["disconnected"] = now
        elif now - details["disconnected"] > self.application_close_timeout:
            details["disconnected"] = now
            logger.warning(
                "an application did nothing for %g s after its connection ended, and is cancelled",
                self.application_close_timeout,
            )
            details["application_instance"].cancel()

    # The end

    def _on_signal(self, number: int, _: Any) -> None:
        """The first signal drains, the second ends the process at once with the status shells give it."""
        if self._signalled:
            leave(128 + number)
        self._signalled = True
        # Whatever hangs, be it the event loop: the process ends in time.
        watchdog = threading.Timer(self.settings.drain_seconds, leave, [0])
        watchdog.daemon = True
        watchdog.start()
        self.loop.call_soon_threadsafe(self._start_drain, number)

    def _start_drain(self, number: int) -> None:
        seconds = self.settings.drain_seconds
        logger.info("%s: draining, %g s at most", signal.Signals(number).name, seconds)
        self._draining = self.loop.create_task(self.drain(seconds))

    async def drain(self, seconds: float) -> None:
        """End within `seconds`: no new connections, then the drains of `on_drain`, then stop.

        A WebSocket still open after those is closed with 1012. What was written is delivered, and no
        application is cancelled, before the time is up.
        """
        margin = min(MARGIN_SECONDS, seconds / 10)
        try:
            async with asyncio.timeout(seconds - 2 * margin):
                for port in self.ports:
                    await defer.maybeDeferred(port.stopListening).asFuture(self.loop)
                await servers.drain(seconds - 2 * margin)
                while self._busy():
                    self._close_websockets()
                    self._reaped.clear()
                    await self._reaped.wait()
        except TimeoutError:
            logger.warning("draining took too long, %d connections are cut off", len(self.connections))
        except Exception:
            logger.exception("draining failed")
        self._close_websockets()
        tasks = self._cancel_applications()
        if tasks:
            await asyncio.wait(tasks, timeout=margin)
        self.stop()

    def _busy(self) -> bool:
        """Whether there is a WebSocket or an application; a request that is half here doesn't count."""
        return any(
            isinstance(protocol, WebSocket) or "application_instance" in details
            for protocol, details in self.connections.items()
        )

    def _close_websockets(self) -> None:
        restarting = Close.because(CloseReason.RESTARTING)
        for socket in self.websockets():
            socket.close(restarting.code, restarting.text)

    def kill_all_applications(self) -> Any:
        """The reactor stops: what still runs is cancelled, and waited for."""
        tasks = self._cancel_applications()
        return defer.Deferred.fromFuture(asyncio.gather(*tasks, return_exceptions=True))

    def _cancel_applications(self) -> list[asyncio.Task[None]]:
        tasks = [
            details["application_instance"]
            for details in self.connections.values()
            if "application_instance" in details
        ]
        for task in tasks:
            task.cancel()
        return tasks

    def log_action(self, protocol: str, action: str, details: dict[str, Any]) -> None:
        """Daphne's hook for its access log, which is JSON here, and off where Daphne's is."""
        if self.action_logger is not None:
            access.log(protocol, action, details)


def hung_up(sockets: list[WebSocket]) -> list[WebSocket]:
    """Those of `sockets` whose connection is reset or timed out: nobody hears of it while it isn't read.

    A peer that has only finished sending isn't among them; what it sent is still to be read.
    """
    by_descriptor = {socket_of(socket.transport).fileno(): socket for socket in sockets}
    poll = select.poll()
    for descriptor in by_descriptor:
        if descriptor >= 0:
            poll.register(descriptor, 0)  # errors are always told
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(0)]


def leave(status: int) -> None:
    """End the process at once, with what is printed and logged."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
