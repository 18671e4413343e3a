"""What happens when: legs join, pair, forward and leave; sessions end, once, with a reason and a record.

Everything here runs on one event loop and decides synchronously: between two awaits nobody else acts, so
a session's counters and its end can't disagree.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Protocol
from uuid import UUID, uuid4

from relay import conf
from relay.closing import Close, CloseReason
from relay.grants import Grant, Refused
from relay.ledger import Ledger, LegRecord, SessionRecord
from relay.links import Meter, Spliceable
from relay.links.local import LocalLink, Send
from relay.rendezvous import Arrival, Away, Full, Rendezvous
from relay.rendezvous.memory import MemoryRendezvous
from relay.roles import Role
from relay.session import Session, State

logger = logging.getLogger(__name__)

CLOSE_EVENT = "relay.close"
"""Type of the event that ends a session from anywhere: sent to its group, with a `reason` (a word of
`CloseReason`) and, if wanted, a `detail` for the close frame's text."""

NODE = f"{socket.gethostname()}:{os.getpid()}:{int(time.time())}"
"""This server process: host, pid and start time (Unix seconds), so that a reused pid is another node."""


class Recorder(Protocol):
    """What sessions need of the ledger."""

    def record(self, record: SessionRecord) -> None:
        """Take note of a session as it is now; never blocks, never fails for want of a database."""

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until everything recorded is written; whether it is. Blocks."""


@dataclass(frozen=True, slots=True)
class Port:
    """What a leg's socket offers: `send` is its ASGI send, `address` where it comes from.

    `connection` is what the server offers to splice it by, None on servers that don't.
    """

    send: Send
    address: str
    connection: Spliceable | None = None


class Leg:
    """One participant's WebSocket, from accept to close."""

    def __init__(self, grant: Grant, port: Port, loop: asyncio.AbstractEventLoop) -> None:
        self.uuid = uuid4()
        self.grant = grant
        self.port = port
        self.joined_at = now_utc()
        self.left_at: datetime | None = None
        self.closed_with: Close | None = None
        self.live: LiveSession
        self.role: Role
        self.link: LocalLink
        # Resolved when the peer has come; from then on `link` may be used.
        self.paired: asyncio.Future[None] = loop.create_future()
        # Resolved when the session has ended, with the close frame that this leg is to be sent, None if
        # its socket is closed already.
        self.over: asyncio.Future[Close | None] = loop.create_future()
        # The task that reads this leg's socket. It's cancelled in the very moment the session ends:
        # a frame handed over after that would be missing from the record.
        self.reader: asyncio.Task[None] | None = None
        # True while the reader waits for the socket: all that it has received is handed over or, before
        # the peer has come, kept.
        self.idle = True
        self.spliced = False

    @property
    def session_uuid(self) -> UUID:
        """The session's UUID."""
        return self.live.session.uuid

    def stop(self, close: Close, gone: bool) -> None:
        """The session has ended with `close`; `gone` if this leg's socket is closed. Only for `Sessions`."""
        self.left_at = now_utc()
        # A leg whose connection dropped was told nothing.
        self.closed_with = None if gone and close.reason is CloseReason.PEER_LOST else close
        if self.reader is not None and self.reader is not asyncio.current_task():
            self.reader.cancel()
        if self.spliced and self.port.connection is not None:
            self.port.connection.unsplice()
        self.paired.cancel()
        if not self.over.done():  # it's cancelled where the server cancelled who waits for it
            self.over.set_result(None if gone else close)


class LiveSession:
    """A session of this process with its legs, meters and timer."""

    __slots__ = ("legs", "meters", "session", "started_at", "timer", "waited")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.started_at = now_utc()
        self.legs: dict[Role, Leg] = {}
        # By the role that sends.
        self.meters = {role: Meter() for role in Role}
        self.timer: asyncio.TimerHandle | None = None
        # By the role of each receiver for which data waits: how much it had taken when that was last seen
        # to grow, and when that was (seconds of the clock).
        self.waited: dict[Role, tuple[int, float]] = {}


class Sessions:
    """All sessions that have a leg in this process."""

    def __init__(
        self,
        settings: conf.RelaySettings,
        rendezvous: Rendezvous,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.draining = False
        self._rendezvous = rendezvous
        self._recorder = recorder
        self._clock = clock
        self._live: dict[UUID, LiveSession] = {}

    async def join(self, session_id: str, grant: Grant, port: Port) -> Leg:
        """Give the bearer of `grant` a place in `session_id`. Raises `Refused` if there is none for it."""
        grant.check_session(session_id)
        if self.draining:
            raise Refused(CloseReason.RESTARTING)
        leg = Leg(grant, port, asyncio.get_running_loop())
        try:
            placement = await self._rendezvous.join(session_id, Arrival(leg.uuid, grant.subject, grant.role))
        except Full:
            raise Refused(CloseReason.SESSION_FULL, self._why_full(grant)) from None
        except Away:
            raise Refused(CloseReason.UNAVAILABLE) from None
        leg.role = placement.role
        if placement.replaced in self._live:
            self._end(self._live[placement.replaced], Close.because(CloseReason.REPLACED))
        if placement.peer is None:
            leg.live = LiveSession(Session(placement.session, session_id, leg.role, self._clock()))
            leg.live.legs[leg.role] = leg
            self._live[placement.session] = leg.live
        else:
            leg.live = self._live[placement.session]
            leg.live.legs[leg.role] = leg
            self._pair(leg.live, leg)
        self._watch(leg.live)
        self._recorder.record(self._snapshot(leg.live))
        return leg

    def gone(self, leg: Leg, close: Close) -> None:
        """The socket of `leg` is closed; its session ends, and its peer is told `close`."""
        self._end(leg.live, close, gone=leg)

    def end(self, leg: Leg, close: Close) -> None:
        """Something other than a leg's leaving ends the session of `leg`: both legs are told `close`."""
        self._end(leg.live, close)

    def splice(self, leg: Leg) -> None:
        """Where the server can, let the frames of `leg` go straight to its peer's socket from now on.

        Tried whenever the application has handed over all that it had: it works at the first moment in
        which nothing is half received.
        """
        if leg.spliced or leg.over.done():
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
        started = self._clock()
        closing = self.settings.close_seconds
        await self._until(lambda: not self._live, seconds - 2 * closing)
        # A reader that waits for its socket has handed over all that was received.
        await self._until(lambda: all(leg.idle for leg in self._legs()), min(closing, seconds))
        for live in list(self._live.values()):
            self._end(live, Close.because(CloseReason.RESTARTING))
        left = max(0.0, started + seconds - self._clock())
        if not await asyncio.to_thread(self._recorder.flush, left):
            logger.error("usage records could not all be written within %g s of draining", seconds)

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = self._clock() + seconds
        while not done() and self._clock() < deadline:  # noqa: ASYNC110 - once, at the very end
            await asyncio.sleep(0.05)

    def _legs(self) -> list[Leg]:
        return [leg for live in self._live.values() for leg in live.legs.values()]

    def _why_full(self, grant: Grant) -> str:
        if grant.role is None:
            return ""
        return f"the place of the {grant.role} is taken by someone else"

    def _pair(self, live: LiveSession, newcomer: Leg) -> None:
        live.session.pair(newcomer.role, self._clock())
        for role, leg in live.legs.items():
            meter = live.meters[role]
            meter.active_at = self._clock()
            leg.link = LocalLink(
                live.legs[role.other].port.send, meter, self._clock, self.settings.max_message_bytes
            )
        for leg in live.legs.values():
            leg.paired.set_result(None)

    def _end(self, live: LiveSession, close: Close, gone: Leg | None = None) -> None:
        """End a session, once. `gone` is the leg whose socket is closed already, where that was the cause."""
        if not live.session.end(close, self._clock()):
            return
        if live.timer is not None:
            live.timer.cancel()
        for leg in live.legs.values():
            leg.stop(close, gone=leg is gone)
        del self._live[live.session.uuid]
        self._recorder.record(self._snapshot(live))
        self._rendezvous.end(live.session.session_id, live.session.uuid)

    def _watch(self, live: LiveSession) -> None:
        """End the session if a time-out is due, else look again when the next one may be."""
        if live.timer is not None:
            live.timer.cancel()
        now = self._clock()
        session, settings = live.session, self.settings
        deadlines = [(session.opened_at + settings.max_session_seconds, CloseReason.EXPIRED)]
        look_again = deadlines[0][0]
        if session.state is State.WAITING:
            deadlines.append((session.opened_at + settings.session_timeout, CloseReason.WAIT_TIMEOUT))
        else:
            active_at = max(meter.active_at for meter in live.meters.values())
            deadlines.append((active_at + settings.session_timeout, CloseReason.IDLE_TIMEOUT))
            stalled_at = self._stalled_at(live, now)
            if stalled_at is not None:
                deadlines.append((stalled_at, CloseReason.STALLED))
            # A receiver that stops taking is only seen by looking: a quarter late at most.
            look_again = now + settings.stall_seconds / 4
        due, reason = min(deadlines)
        if due <= now:
            self._end(live, Close.because(reason))
            return
        delay = min(due, look_again) - now
        live.timer = asyncio.get_running_loop().call_later(delay, self._watch, live)

    def _stalled_at(self, live: LiveSession, now: float) -> float | None:
        """When the session counts as stalled if nothing changes; None while no data waits for a receiver."""
        since = []
        for role, leg in live.legs.items():
            taken = _taken_by(leg, live.legs[role.other], live.meters[role.other])
            if taken is None:
                live.waited.pop(role, None)
                continue
            before, first_seen = live.waited.get(role, (-1, now))
            if taken > before:
                before, first_seen = taken, now
            live.waited[role] = (before, first_seen)
            since.append(first_seen)
        return min(since) + self.settings.stall_seconds if since else None

    def _snapshot(self, live: LiveSession) -> SessionRecord:
        """The record of a session as it is at this moment."""
        session, now = live.session, self._clock()
        ended = session.close is not None
        up, down = live.meters[Role.CLIENT], live.meters[Role.SERVER]
        return SessionRecord(
            session_uuid=session.uuid,
            session_id=session.session_id,
            account_id=self._account(live),
            node=NODE,
            started_at=live.started_at,
            paired_at=self._paired_at(live),
            timestamp=now_utc() if ended else None,
            reason=session.close.reason if session.close else "",
            waiting_ms=session.waiting_ms(now),
            paired_ms=session.paired_ms(now),
            bytes_client_to_server=up.nbytes,
            bytes_server_to_client=down.nbytes,
            frames_client_to_server=up.frames,
            frames_server_to_client=down.frames,
            legs=tuple(self._leg_record(leg) for leg in live.legs.values()),
        )

    def _account(self, live: LiveSession) -> str | None:
        """Who is billed: the client's account, the server's where the client's token names none."""
        accounts = [live.legs[role].grant.account_id for role in Role if role in live.legs]
        return next((account for account in accounts if account), None)

    def _paired_at(self, live: LiveSession) -> datetime | None:
        if live.session.paired_at is None:
            return None
        return max(leg.joined_at for leg in live.legs.values())

    def _leg_record(self, leg: Leg) -> LegRecord:
        received = leg.live.meters[leg.role.other]
        close = leg.closed_with
        return LegRecord(
            leg_uuid=leg.uuid,
            role=leg.role,
            joined_at=leg.joined_at,
            subject=leg.grant.subject or "",
            account_id=leg.grant.account_id,
            token_id=leg.grant.token_id or "",
            address=leg.port.address,
            node=NODE,
            left_at=leg.left_at,
            bytes_received=received.nbytes,
            frames_received=received.frames,
            close_code=close.code if close else None,
            close_reason=close.text if close else "",
        )


def _taken_by(leg: Leg, peer: Leg, meter: Meter) -> int | None:
    """How much `leg` has taken of what `peer` sent, in a unit that only grows; None if no data waits for it.

    By the bytes that its kernel buffer has taken where the server tells, by delivered messages elsewhere.
    """
    connection = leg.port.connection
    if connection is not None:
        return connection.taken_bytes if connection.unsent_bytes else None
    return meter.frames if peer.link.sending else None


def group_name(session: UUID) -> str:
    """The channel-layer group of a session's legs. It carries control events only, never frames."""
    return f"relay.{session.hex}"


def now_utc() -> datetime:
    """The wall clock: for people; durations come from the monotonic one."""
    return datetime.now(UTC)


@cache
def of_this_process() -> Sessions:
    """The one `Sessions` of this process, made when the first leg comes."""
    return Sessions(conf.current(), MemoryRendezvous(), Ledger())
