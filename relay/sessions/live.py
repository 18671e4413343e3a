"""A session while it lives, as one process sees it: its legs, what it counted, its record at this moment."""

import asyncio
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from relay.ledger import LegRecord, SessionRecord, cut
from relay.links import Meter, Spliceable
from relay.links.local import LocalLink, Send
from relay.links.remote import RemoteLink
from relay.rules.closing import Close, CloseReason
from relay.rules.grants import Grant
from relay.rules.lifecycle import Session
from relay.rules.roles import Role
from relay.rules.traffic import Traffic

NODE = f"{socket.gethostname()}:{os.getpid()}:{int(time.time())}"
"""This server process: host, pid and start time (Unix seconds), so that a reused pid is another node."""


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
        self.link: LocalLink | RemoteLink
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
        # Done when the frame of this leg that the session's end has cut in two is delivered and counted, or
        # never will be; None if it has cut none.
        self.last_frame: asyncio.Future[None] | None = None

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
            self.last_frame = self.port.connection.unsplice()
        self.paired.cancel()
        if not self.over.done():  # it's cancelled where the server cancelled who waits for it
            self.over.set_result(None if gone else close)

    def record(self) -> LegRecord:
        """Its record as it is at this moment."""
        received = self.live.meters[self.role.other]
        close = self.closed_with
        return LegRecord(
            leg_uuid=self.uuid,
            role=self.role,
            joined_at=self.joined_at,
            subject=self.grant.subject or "",
            account_id=self.grant.account_id,
            token_id=self.grant.token_id or "",
            address=self.port.address,
            node=NODE,
            left_at=self.left_at,
            bytes_received=received.nbytes,
            frames_received=received.frames,
            close_code=close.code if close else None,
            close_reason=close.text if close else "",
        )


class LiveSession:
    """A session with a leg in this process: legs, meters and timer."""

    __slots__ = (
        "accounts",
        "ended_at",
        "legs",
        "link",
        "meters",
        "node",
        "noted",
        "owned",
        "paired_at",
        "session",
        "started_at",
        "timer",
        "traffic",
        "waited",
    )

    def __init__(self, session: Session, owned: bool = True) -> None:
        self.session = session
        # Whether its record is this process's to write: it is where the first leg came.
        self.owned = owned
        self.node = NODE  # where the first leg came
        self.started_at = now_utc()
        self.paired_at: datetime | None = None
        self.ended_at: datetime | None = None
        # The legs of this process, and the accounts of all legs.
        self.legs: dict[Role, Leg] = {}
        self.accounts: dict[Role, str | None] = {}
        # By the role that sends.
        self.meters = {role: Meter() for role in Role}
        # To the node of the peer, where that is another one.
        self.link: RemoteLink | None = None
        self.timer: asyncio.TimerHandle | None = None
        # What was counted when it was last recorded.
        self.noted: tuple[int, ...] = ()
        self.traffic = Traffic()
        # By the role of each receiver for which data waits: how much it had taken when that was last seen
        # to grow, and when that was (seconds of the clock).
        self.waited: dict[Role, tuple[int, float]] = {}

    def seat(self, leg: Leg, role: Role) -> None:
        """`leg` takes its place."""
        leg.live, leg.role = self, role
        self.legs[role] = leg
        self.accounts[role] = leg.grant.account_id

    @property
    def counted(self) -> tuple[int, ...]:
        """All its counters as they are."""
        up, down = self.meters[Role.CLIENT], self.meters[Role.SERVER]
        return up.frames, up.nbytes, down.frames, down.nbytes

    def record(self, now: float, closed: bool) -> SessionRecord:
        """Its record at `now` (seconds of its clock), of a session that is closed, or live so far."""
        session = self.session
        up, down = self.meters[Role.CLIENT], self.meters[Role.SERVER]
        waiting_ms, paired_ms = session.waiting_ms(now), session.paired_ms(now)
        point = (waiting_ms + paired_ms, up.nbytes, down.nbytes)
        if not closed:
            self.traffic.note(point)
        # Who is billed: the client's account, the server's where the client's token names none.
        accounts = [self.accounts.get(role) for role in Role]
        return SessionRecord(
            session_uuid=session.uuid,
            session_id=session.session_id,
            account_id=next((account for account in accounts if account), None),
            node=self.node,
            owned=self.owned,
            started_at=self.started_at,
            paired_at=self.paired_at,
            timestamp=self.ended_at if closed else None,
            reason=session.close.reason if closed and session.close else "",
            waiting_ms=waiting_ms,
            paired_ms=paired_ms,
            bytes_client_to_server=up.nbytes,
            bytes_server_to_client=down.nbytes,
            frames_client_to_server=up.frames,
            frames_server_to_client=down.frames,
            legs=tuple(leg.record() for leg in self.legs.values()),
            traffic=self.traffic.until(point) if closed else (),
        )

    def stalled_since(self, now: float) -> float | None:
        """Since when a receiver of this process takes nothing of what waits for it; None if none waits."""
        since = []
        for role, leg in self.legs.items():
            taken = self._taken_by(leg)
            if taken is None:
                self.waited.pop(role, None)
                continue
            before, first_seen = self.waited.get(role, (-1, now))
            if taken > before:
                before, first_seen = taken, now
            self.waited[role] = (before, first_seen)
            since.append(first_seen)
        return min(since, default=None)

    def _taken_by(self, leg: Leg) -> int | None:
        """How much `leg` has taken of what its peer sent, in a unit that only grows; None if no data waits.

        By the bytes that its kernel buffer has taken where the server tells, by delivered messages elsewhere.
        """
        connection = leg.port.connection
        if connection is not None:
            return connection.taken_bytes if connection.unsent_bytes else None
        waits = self.link.delivering if self.link is not None else self.legs[leg.role.other].link.sending
        return self.meters[leg.role.other].frames if waits else None


def now_utc() -> datetime:
    """The wall clock, to the millisecond: for people; durations come from the monotonic one."""
    return cut(datetime.now(UTC))
