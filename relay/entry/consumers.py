"""The WebSocket face of the relay: ASGI events in, ASGI events out. It translates; `sessions` decides."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer

from relay import conf, sessions
from relay.links import SPLICE_EXTENSION, MessageTooBig
from relay.links.local import Message, payload_bytes
from relay.rules.closing import ABNORMAL, NO_STATUS, Close, CloseReason
from relay.rules.flow import Gauge, WaterMarks
from relay.rules.grants import SCOPE_KEY, SESSION_ID_RULE, Grant, Refused, is_session_id

logger = logging.getLogger(__name__)

SUBPROTOCOL = "lem.relay.v1"
"""Chosen when the client offers it: a browser that offers subprotocols needs one of them chosen."""

PENDING_FRAME_BYTES = 128
"""What a kept frame costs beside its payload, in bytes, so that a flood of empty ones is bounded too."""

CHANNEL_LAYER_RETRY_SECONDS = 1.0
"""Pause before the channel layer is asked again after it failed: often enough to be back quickly after
a restart of Redis, seldom enough not to be a load on it."""

FAILURES = frozenset({1002, 1007, 1009})
"""Codes with which a server fails a connection that breaks the rules (RFC 6455 section 7.4.1)."""

Receive = Callable[[], Awaitable[Message]]


class RelayConsumer(AsyncWebsocketConsumer):  # type: ignore[misc] # Channels has no types
    """One leg. Its socket and its channel-layer events are read by loops of their own.

    Channels' dispatch makes a task for each event and handles one at a time: a frame that waits for room
    would keep the event from coming through that ends the session. Here a frame costs neither.
    """

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Any) -> None:
        self.scope = scope
        self.base_send = send
        if "extensions" not in scope:
            _warn_of_plain_server()
        if (await receive())["type"] != "websocket.connect":
            return
        offered = scope.get("subprotocols", ())
        await self.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            leg = await self._join()
        except Refused as refused:
            await self._tell(refused.close)
            return
        try:
            await self._serve(leg, receive)
        finally:
            # Where no lifespan is mounted nothing tells that the server stops: it waits for its applications,
            # then ends the process, perhaps by a signal, which runs no exit handler. So a leg's application
            # does not end before its session's record is on the disk. Our own server drains by itself.
            if leg.port.connection is None:
                await self.sessions.saved(leg)

    async def _serve(self, leg: sessions.Leg, receive: Receive) -> None:
        """Carry the frames of a leg that has its place, until its session ends."""
        loops: list[asyncio.Task[None]] = []
        try:
            await self._enter_group(leg)
            if self.channel_name:
                loops.append(_loop(leg, self._follow(leg)))
                # A layer lets go of a channel when its receive is cancelled: so it has to have begun.
                await asyncio.sleep(0)
            if not leg.over.done():
                leg.reader = _loop(leg, self._read(leg, receive))
                loops.append(leg.reader)
            close = await leg.over
            if close is not None:
                await self._tell(close)
        except asyncio.CancelledError:
            if leg.port.connection is None:
                # Other servers than ours cancel an application whose socket is open only when they stop.
                restarting = Close.because(CloseReason.RESTARTING)
                self.sessions.end(leg, restarting)
                await self._tell(restarting)
            raise
        finally:
            # Also when the server cancels us: the session must not outlive its leg.
            self.sessions.gone(leg, Close.because(CloseReason.PEER_LOST))
            await _cancelled(loops)
            if self.channel_name:
                await self._leave_group(leg)

    async def _join(self) -> sessions.Leg:
        """Give this socket a place. Raises `Refused`."""
        session_id = self.scope["url_route"]["kwargs"]["session_id"]
        if not is_session_id(session_id):
            raise Refused(CloseReason.FORBIDDEN, SESSION_ID_RULE)
        grant: Grant | Refused = self.scope[SCOPE_KEY]
        if isinstance(grant, Refused):
            raise grant
        self.sessions = sessions.of_this_process()
        try:
            async with asyncio.timeout(conf.current().admit_seconds):
                return await self.sessions.join(session_id, grant, self._port())
        except Refused:
            raise
        except Exception as error:
            logger.warning("a backend failed, a leg is refused: %s: %s", type(error).__name__, error)
            raise Refused(CloseReason.UNAVAILABLE) from error

    def _port(self) -> sessions.Port:
        client = self.scope.get("client")
        offer = self.scope.get("extensions", {}).get(SPLICE_EXTENSION, {})
        return sessions.Port(self.base_send, client[0] if client else "", offer.get("connection"))

    async def _tell(self, close: Close) -> None:
        """Send the close frame. A socket that is gone by now, or takes nothing, needs none."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(conf.current().close_seconds):
                await self.close(close.code, close.text)

    # The socket

    async def _read(self, leg: sessions.Leg, receive: Receive) -> None:
        """Forward what comes until the socket closes; the session's end cancels this."""
        limit = conf.current().max_message_bytes
        try:
            message = await self._read_until_paired(leg, receive, limit)
            while message["type"] == "websocket.receive":
                await leg.link.forward(message)
                self.sessions.splice(leg)
                leg.idle = True
                message = await receive()
                leg.idle = False
        except MessageTooBig:
            detail = f"a message is over {limit} bytes"
            self.sessions.end(leg, Close.because(CloseReason.MESSAGE_TOO_BIG, detail))
        except OSError:
            pass  # the peer's socket is gone; its own loop ends the session and says why
        else:
            self.sessions.gone(leg, _close_for_peer(message))

    async def _read_until_paired(self, leg: sessions.Leg, receive: Receive, limit: int) -> Message:
        """Keep the frames that come before the peer and deliver them when it has come.

        Gives the first message after those, or the disconnect. Past `pending_bytes` the socket isn't read
        any more, so that TCP slows its client down.
        """
        kept: list[Message] = []
        room = Gauge(WaterMarks(conf.current().pending_bytes, 0))
        paired_or_ended: set[asyncio.Future[None]] = {leg.paired}
        if leg.port.connection is not None:
            paired_or_ended.add(leg.port.connection.ended)
        receiving = asyncio.ensure_future(receive())
        try:
            while not leg.paired.done():
                if room.paused:
                    # Nobody reads, so the disconnect can't be met; a server that tells of it is listened to.
                    await asyncio.wait(paired_or_ended, return_when=asyncio.FIRST_COMPLETED)
                    if not leg.paired.done():
                        return await _disconnect(receive)
                    continue
                await asyncio.wait((leg.paired, receiving), return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    continue
                message = receiving.result()
                if message["type"] != "websocket.receive":
                    break
                size = payload_bytes(message)
                if size > limit:
                    raise MessageTooBig(size)
                kept.append(message)
                if not room.add(size + PENDING_FRAME_BYTES):
                    receiving = asyncio.ensure_future(receive())
            # The peer may have come in the very moment in which this one left: what was sent is delivered.
            if leg.paired.done():
                leg.idle = False
                for message in kept:
                    await leg.link.forward(message)
                # A message that came meanwhile is taken from the socket already, and goes the ordinary way.
                if room.paused or not receiving.done():
                    self.sessions.splice(leg)
                    leg.idle = True
            message = await (receive() if room.paused else receiving)
            leg.idle = False
            return message
        finally:
            receiving.cancel()

    # The channel layer

    async def _follow(self, leg: sessions.Leg) -> None:
        """Act on the events of this leg's channel and group until cancelled.

        While the channel layer is away the session goes on; it's asked again every so often.
        """
        while True:
            try:
                event = await self.channel_layer.receive(self.channel_name)
            except Exception as error:  # noqa: BLE001 - a layer raises what its client library raises
                logger.warning(
                    "the channel layer failed, events are late: %s: %s", type(error).__name__, error
                )
                await asyncio.sleep(CHANNEL_LAYER_RETRY_SECONDS)
                continue
            if event["type"] == sessions.CLOSE_EVENT:
                reason = CloseReason(event["reason"])
                self.sessions.end(leg, Close.because(reason, event.get("detail", "")))

    async def _enter_group(self, leg: sessions.Leg) -> None:
        """Get a channel, and join the session's group with it."""
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        self.channel_name = ""
        group = sessions.group_name(leg.session_uuid)
        try:
            async with asyncio.timeout(conf.current().admit_seconds):
                self.channel_name = await self.channel_layer.new_channel()
                await self.channel_layer.group_add(group, self.channel_name)
        except Exception as error:  # noqa: BLE001 - a layer raises what its client library raises
            logger.warning("the channel layer failed, a session ends: %s: %s", type(error).__name__, error)
            self.sessions.end(leg, Close.because(CloseReason.UNAVAILABLE))

    async def _leave_group(self, leg: sessions.Leg) -> None:
        group = sessions.group_name(leg.session_uuid)
        try:
            async with asyncio.timeout(conf.current().close_seconds):
                await self.channel_layer.group_discard(group, self.channel_name)
        except Exception as error:  # noqa: BLE001 - as above
            # A new session has a new group: a stale member of this one harms nobody, and expires.
            logger.warning("a leg could not leave its group: %s: %s", type(error).__name__, error)


@functools.cache
def _warn_of_plain_server() -> None:
    """Once a process: Daphne without `relay.servers.daphne`, which is known by the missing extensions."""
    logger.warning(
        "this server has neither flow control nor faithful closes: frames may be lost and memory may grow; "
        "call relay.servers.daphne.install() in the ASGI module, as lemcloud/asgi.py does"
    )


def _loop(leg: sessions.Leg, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that does `work`. Should that fail, the leg fails with it: without it frames would stay away."""

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if leg.over.done():
            logger.error("a loop of a leg that had ended failed", exc_info=error)
        else:
            leg.over.set_exception(error)  # which the server logs

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel `tasks` and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnect(receive: Receive) -> Message:
    """The disconnect of a socket that has ended; what is queued before it has nobody to go to."""
    while (message := await receive())["type"] == "websocket.receive":
        pass
    return message


def _close_for_peer(disconnect: Message) -> Close:
    """What the other leg is told after a `websocket.disconnect` of this one.

    Our own server says whether the close was clean. Elsewhere it's read from what there is: servers give
    1006, or 1005 without a reason, for a dropped connection, their own code where they failed it
    themselves (RFC 6455 section 7.1.7), which 1002, 1007 and 1009 practically always are, and 1012
    without a reason where they restart.
    """
    code = disconnect.get("code") or NO_STATUS
    bare = "reason" not in disconnect and code in (NO_STATUS, CloseReason.RESTARTING.code)
    clean = disconnect.get("clean", not bare and code != ABNORMAL and code not in FAILURES)
    if clean:
        return Close.by_peer(code, disconnect.get("reason") or "")
    if code == CloseReason.MESSAGE_TOO_BIG.code:
        return Close.because(CloseReason.MESSAGE_TOO_BIG)
    if code == CloseReason.RESTARTING.code:
        return Close.because(CloseReason.RESTARTING)
    return Close.because(CloseReason.PEER_LOST)
