"""What happens when: legs join, pair, forward and leave; sessions end, once, with a reason and a record.

Everything here runs on one event loop and decides synchronously: between two awaits nobody else acts, so
a session's counters and its end can't disagree.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID
from weakref import WeakValueDictionary

from channels.layers import get_channel_layer

from relay import conf
from relay.ledger import Ledger, SessionRecord, at_exit
from relay.links.exchange import MESSAGE_TYPE, Exchange, Message
from relay.links.local import LocalLink
from relay.rendezvous import Arrival, Away, Full, Placement, Rendezvous
from relay.rendezvous.memory import MemoryRendezvous
from relay.rendezvous.redis import RedisRendezvous
from relay.rules.closing import Close, CloseReason
from relay.rules.grants import Grant, Refused
from relay.rules.lifecycle import ENDINGS, Session, State
from relay.rules.roles import Role
from relay.sessions.across_nodes import RemoteSession
from relay.sessions.live import NODE, Leg, LiveSession, Port, now_utc

__all__ = ["CLOSE_EVENT", "NODE", "Leg", "Port", "Recorder", "Sessions", "group_name", "of_this_process"]

logger = logging.getLogger(__name__)

CLOSE_EVENT = "relay.close"
"""Type of the event that ends a session from anywhere: sent to its group, with a `reason` (a word of
`CloseReason`) and, if wanted, a `detail` for the close frame's text."""


SLICE_SECONDS = 0.05
"""Between two slices of a checkpoint: with 10,000 sessions in 10 s there are 50 in each."""

SLICE_SESSIONS = 50
"""Sessions looked at in one go, where that isn't too slow: a few milliseconds of the event loop."""

NOT_HERE = Close.because(CloseReason.PEER_LOST)
"""What a leg is told whose peer's node knows nothing of their session."""

SAFE_SECONDS = 0.5
"""How long a leg's application may wait for its session's record to be on the disk: several batches of the
ledger, and little beside what a server waits for its applications when it stops."""

REMEMBERED_ENDS = 1024
"""Ends that are told to another node that asks for a session which is over: it does so within moments."""


class Recorder(Protocol):
    """What sessions need of the ledger."""

    def record(self, record: SessionRecord) -> None:
        """Take note of a session as it is now; never blocks, never fails for want of a database."""

    def close(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until everything recorded is written; whether it is. Blocks.

        What could not be written by then is saved elsewhere, or counted in an error line.
        """

    def safe(self, session: UUID, *, printed: bool = False) -> "Future[None]":
        """Done when what was recorded of `session` outlives this process, and its line is `printed`."""

    @property
    def spool_error(self) -> str:
        """What keeps it from saving records while the database is away; empty if nothing does."""


class Sessions:
    """All sessions that have a leg in this process.

    With `many_nodes` the `rendezvous` is shared with other processes, and legs on two of them may meet.
    """

    def __init__(
        self,
        settings: conf.RelaySettings,
        rendezvous: Rendezvous,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        *,
        many_nodes: bool = False,
    ) -> None:
        self.settings = settings
        self.draining = False
        self.clock = clock
        self.rendezvous = rendezvous
        rendezvous.on_superseded = self._superseded
        self._recorder = recorder
        self._live: dict[UUID, LiveSession] = {}
        self._exchange = Exchange(self._stranger) if many_nodes else None
        # Those with a peer on another node, until all is said: longer than they are live.
        self._remote: dict[UUID, RemoteSession] = {}
        # How sessions ended that another node may not have heard of yet, newest last.
        self._ends: dict[UUID, Close] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # What the checkpoint that is going on has still to look at.
        self._unchecked: list[LiveSession] = []
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        # One arrival at a time: the second leg of a session must find the first one here.
        self._doors: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def spool_error(self) -> str:
        """Why usage records would be lost with this process; empty where they wouldn't."""
        return self._recorder.spool_error

    async def join(self, session_id: str, grant: Grant, port: Port) -> Leg:
        """Give the bearer of `grant` a place in `session_id`. Raises `Refused` if there is none for it."""
        grant.check_session(session_id)
        if self.draining:
            raise Refused(CloseReason.RESTARTING)
        leg = Leg(grant, port, asyncio.get_running_loop())
        async with self._doors.setdefault(session_id, asyncio.Lock()):
            try:
                channel = await self._exchange.open() if self._exchange is not None else ""
                arrival = Arrival(leg.uuid, grant.subject, grant.role, channel)
                placement = await self.rendezvous.join(session_id, arrival)
            except Full:
                raise Refused(CloseReason.SESSION_FULL, self._why_full(grant)) from None
            except Away as away:
                logger.warning("the rendezvous is away, a leg is refused: %s", away)
                raise Refused(CloseReason.UNAVAILABLE) from None
            self._seat(leg, session_id, placement)
        return leg

    def _seat(self, leg: Leg, session_id: str, placement: Placement) -> None:
        role = placement.role
        if placement.replaced is not None:
            self._end_replaced(placement.replaced)
        if placement.session in self._live:
            live = self._live[placement.session]
            live.seat(leg, role)
            self._pair(live, leg)
        elif placement.peer is None or self._exchange is None:
            live = self._live[placement.session] = LiveSession(
                Session(placement.session, session_id, role, self.clock())
            )
            live.seat(leg, role)
        else:
            # The first leg is on another node.
            session = Session(placement.session, session_id, role.other, self.clock())
            live = self._live[placement.session] = LiveSession(session, owned=False)
            live.seat(leg, role)
            self._paired(live, role)
            self._remote[placement.session] = RemoteSession(
                self, live, self._exchange, placement.peer_channel
            )
        self._watch(live)
        self.note(live)
        if self._checkpoint_timer is None:
            self._wait_for_checkpoint(self.settings.checkpoint_seconds)

    def gone(self, leg: Leg, close: Close) -> None:
        """The socket of `leg` is closed; its session ends, and its peer is told `close`."""
        self.end_session(leg.live, close, gone=leg)

    def end(self, leg: Leg, close: Close) -> None:
        """Something other than a leg's leaving ends the session of `leg`: both legs are told `close`."""
        self.end_session(leg.live, close)

    def splice(self, leg: Leg) -> None:
        """Where the server can, let the frames of `leg` go straight to its peer's socket from now on.

        Tried whenever the application has handed over all that it had: it works at the first moment in
        which nothing is half received.
        """
        if leg.spliced or leg.over.done() or leg.live.link is not None:
            return
        peer = leg.live.legs[leg.role.other]
        here, there = leg.port.connection, peer.port.connection
        if here is not None and there is not None:
            leg.spliced = here.splice(there, leg.live.meters[leg.role])

    async def drain(self, seconds: float) -> None:
        """Refuse new legs, let live sessions go on while there is time, then end them as `restarting`.

        What a leg has sent and the relay has taken is delivered first. Returns when every record is
        written, and within `seconds`.
        """
        self.draining = True
        started = self.clock()
        closing = self.settings.close_seconds
        await self._until(lambda: not self._live, seconds - 2 * closing)
        # A reader that waits for its socket has handed over all that was received.
        await self._until(self._nothing_under_way, min(closing, seconds))
        for live in list(self._live.values()):
            self.end_session(live, Close.because(CloseReason.RESTARTING))
        left = max(0.0, started + seconds - self.clock())
        await self._until(lambda: not (self._remote or self._tasks), left / 2)
        for remote in list(self._remote.values()):
            remote.give_up()  # its link goes on: another node must not hear that this one is done
        await self.rendezvous.close()
        left = max(0.0, started + seconds - self.clock())
        # Not left to the exit of the process: a server that ends itself by a signal has none.
        await asyncio.to_thread(self._recorder.close, left)

    async def saved(self, leg: Leg) -> None:
        """Returns when what is known of the session of `leg` is on the disk, or after `SAFE_SECONDS`.

        Also where the server cancels the caller meanwhile, even again and again: the cancelling goes on
        after that. A session with another node is safe when this node's figures are: whoever of the two
        is left closes it with them.
        """
        loop = asyncio.get_running_loop()
        # A bare future: a server that stops cancels every task there is.
        safe: asyncio.Future[None] = loop.create_future()

        def is_safe() -> None:
            if not safe.done():
                safe.set_result(None)

        def tell(_: "Future[None]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
                loop.call_soon_threadsafe(is_safe)

        self._recorder.safe(leg.session_uuid, printed=True).add_done_callback(tell)
        deadline = loop.time() + SAFE_SECONDS
        cancelled: asyncio.CancelledError | None = None
        while not safe.done() and (left := deadline - loop.time()) > 0:
            try:
                await asyncio.wait((safe,), timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def exit(self) -> None:
        """The process exits, and nothing has told it to drain: what lives is recorded as it is.

        For when no event loop runs any more: nobody is told.
        """
        for live in list(self._live.values()):
            if live.link is None and live.session.end(Close.because(CloseReason.RESTARTING), self.clock()):
                live.ended_at = now_utc()
                self.note(live, closed=True)

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = self.clock() + seconds
        while not done() and self.clock() < deadline:  # noqa: ASYNC110 - once, at the very end
            await asyncio.sleep(0.05)

    def _nothing_under_way(self) -> bool:
        """Whether all is delivered that was taken. A session with another node ends when that is so."""
        for remote in list(self._remote.values()):
            remote.drain()
        return all(
            live.link is None and all(leg.idle for leg in live.legs.values()) for live in self._live.values()
        )

    def _why_full(self, grant: Grant) -> str:
        if grant.role is None:
            return ""
        return f"the place of the {grant.role} is taken by someone else"

    # Pairs

    def _pair(self, live: LiveSession, newcomer: Leg) -> None:
        self._paired(live, newcomer.role)
        for role, leg in live.legs.items():
            send = live.legs[role.other].port.send
            leg.link = LocalLink(send, live.meters[role], self.clock, self.settings.max_message_bytes)
        for leg in live.legs.values():
            leg.paired.set_result(None)

    def _paired(self, live: LiveSession, newcomer: Role) -> None:
        live.session.pair(newcomer, self.clock())
        live.paired_at = now_utc()
        for meter in live.meters.values():
            meter.active_at = self.clock()
        self.rendezvous.paired(live.session.uuid)

    def _stranger(self, exchange: Exchange, message: Message) -> None:
        """A message from another node for a leg that has no link: its peer has just come, or is late."""
        live = self._live.get(UUID(message["session"]))
        role = Role(message["to"])
        hello = message.get("hello")
        if live is not None and hello and live.session.state is State.WAITING and role in live.legs:
            self._paired(live, role.other)
            remote = RemoteSession(self, live, exchange, hello["channel"])
            self._remote[live.session.uuid] = remote
            remote.link.receive(message)
            self.note(live)
            self._watch(live)
        elif hello and hello.get("session_id") in self._doors:
            pass  # a leg is just being seated here, perhaps the very one: the other node asks again
        elif hello or message.get("end"):
            answer = {
                "type": MESSAGE_TYPE,
                "session": message["session"],
                "to": str(role.other),
                "gone": self._ends.get(UUID(message["session"]), NOT_HERE).as_dict(),
            }
            self.start(exchange.send(message["from"], answer))

    # The end

    def end_session(self, live: LiveSession, close: Close, gone: Leg | None = None) -> None:
        """End a session, once. `gone` is the leg whose socket is closed already, where that was the cause."""
        if not live.session.end(close, self.clock()):
            return
        live.ended_at = now_utc()
        if live.timer is not None:
            live.timer.cancel()
        for leg in live.legs.values():
            leg.stop(close, gone=leg is gone)
        del self._live[live.session.uuid]
        self.rendezvous.end(live.session.session_id, live.session.uuid)
        if live.link is None:
            if self._exchange is not None:
                self._remember(live.session.uuid, close)
            halves = [leg.last_frame for leg in live.legs.values() if leg.last_frame is not None]
            if halves:
                self.start(self._note_when_whole(live, halves))
            else:
                self.note(live, closed=True)
        else:
            # Each node has counted what it delivered: the record waits for the other one's final count.
            self.note(live)
            live.link.end(close)

    async def _note_when_whole(self, live: LiveSession, halves: list[asyncio.Future[None]]) -> None:
        """Record a session that has ended when the frames are delivered whose first half already is.

        They are counted by then, or never will be: a socket whose close waits for the end of a frame is given
        up after `close_seconds`.
        """
        await asyncio.wait(halves, timeout=self.settings.close_seconds)
        self.note(live, closed=True)

    def _remember(self, session: UUID, close: Close) -> None:
        if close.reason not in ENDINGS[State.PAIRED]:
            return  # the other node has a pair, which can't end like that
        self._ends[session] = close
        if len(self._ends) > REMEMBERED_ENDS:
            del self._ends[next(iter(self._ends))]

    def forget(self, live: LiveSession) -> None:
        """All is said about a session with a peer on another node."""
        self._remote.pop(live.session.uuid, None)

    def note(self, live: LiveSession, closed: bool = False) -> None:
        """Record a session as it is; `closed` if its figures are final."""
        live.noted = live.counted
        self._recorder.record(live.record(self.clock(), closed))

    def safe(self, live: LiveSession) -> Awaitable[None]:
        """Returns when what was noted of a session outlives this process."""
        return asyncio.wrap_future(self._recorder.safe(live.session.uuid))

    def _checkpoint(self) -> None:
        """Record what has changed of the sessions that live: a slice now, the others over the interval."""
        interval = self.settings.checkpoint_seconds
        if not self._unchecked:
            self._unchecked = list(self._live.values())
        slices = min(len(self._live) / SLICE_SESSIONS, interval / SLICE_SECONDS)
        size = max(SLICE_SESSIONS, math.ceil(len(self._live) / max(1, slices)))
        for live in self._unchecked[-size:]:
            if live.session.state is not State.CLOSED and live.counted != live.noted:
                self.note(live)
        del self._unchecked[-size:]
        if self._live:
            self._wait_for_checkpoint(interval / max(1, math.ceil(len(self._live) / size)))
        else:
            self._unchecked.clear()
            self._checkpoint_timer = None

    def _wait_for_checkpoint(self, seconds: float) -> None:
        self._checkpoint_timer = asyncio.get_running_loop().call_later(seconds, self._checkpoint)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` in the background; what goes wrong with it is logged."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("the channel layer failed: %s: %s", type(error).__name__, error)

    def _end_replaced(self, session: UUID) -> None:
        if session in self._live:
            self.end_session(self._live[session], Close.because(CloseReason.REPLACED))
        else:
            event = {"type": CLOSE_EVENT, "reason": str(CloseReason.REPLACED)}
            self.start(get_channel_layer().group_send(group_name(session), event))

    def _superseded(self, session: UUID) -> None:
        """Another session has the place of this one, which was not told or not heard of in time."""
        if session in self._live:
            self.end_session(self._live[session], Close.because(CloseReason.REPLACED))

    def _watch(self, live: LiveSession) -> None:
        """End the session if a time-out is due, else look again when the next one may be."""
        if live.timer is not None:
            live.timer.cancel()
        now = self.clock()
        session, settings = live.session, self.settings
        deadlines = [(session.opened_at + settings.max_session_seconds, CloseReason.EXPIRED)]
        look_again = deadlines[0][0]
        if session.state is State.WAITING:
            deadlines.append((session.opened_at + settings.session_timeout, CloseReason.WAIT_TIMEOUT))
        else:
            active_at = max(meter.active_at for meter in live.meters.values())
            deadlines.append((active_at + settings.session_timeout, CloseReason.IDLE_TIMEOUT))
            stalled_since = live.stalled_since(now)
            if stalled_since is not None:
                deadlines.append((stalled_since + settings.stall_seconds, CloseReason.STALLED))
            # A receiver that stops taking is only seen by looking: a quarter late at most.
            look_again = now + settings.stall_seconds / 4
        due, reason = min(deadlines)
        if due <= now:
            self.end_session(live, Close.because(reason))
            return
        delay = min(due, look_again) - now
        live.timer = asyncio.get_running_loop().call_later(delay, self._watch, live)


def group_name(session: UUID) -> str:
    """The channel-layer group of a session's legs. It carries control events only, never frames."""
    return f"relay.{session.hex}"


@cache
def of_this_process() -> Sessions:
    """The one `Sessions` of this process, made when it starts to serve or when the first leg comes."""
    settings = conf.current()
    ledger = Ledger(node=NODE, spool_dir=Path(settings.spool_dir) if settings.spool_dir else None)
    ledger.start()
    if settings.redis_url:
        redis = RedisRendezvous(settings.redis_url, settings.node_seconds, settings.admit_seconds / 2)
        sessions = Sessions(settings, redis, ledger, many_nodes=True)
    else:
        sessions = Sessions(settings, MemoryRendezvous(), ledger)
    at_exit(sessions.exit)  # before the ledger's own, which was registered when it started
    return sessions
