"""The life of a session as a table, without I/O and without a clock of its own.

            join                    join of the other role
 (nothing) ------> WAITING ------------------------------> PAIRED
                     |  left, wait_timeout, drain, ...        |  left, idle_timeout, stalled, drain, ...
                     +-----------------> CLOSED <-------------+

Times are handed in as seconds of a monotonic clock, so that a step of the wall clock can't make a
negative duration.
"""

from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

from relay.rules.closing import Close, CloseReason
from relay.rules.roles import Role


class State(StrEnum):
    """Where a session stands."""

    WAITING = "waiting"
    PAIRED = "paired"
    CLOSED = "closed"


_ANY_TIME = frozenset(
    {
        CloseReason.PEER_LEFT,
        CloseReason.PEER_LOST,
        CloseReason.REPLACED,
        CloseReason.EXPIRED,
        CloseReason.CLOSED_BY_OPERATOR,
        CloseReason.MESSAGE_TOO_BIG,
        CloseReason.QUOTA_EXCEEDED,
        CloseReason.RESTARTING,
        CloseReason.UNAVAILABLE,
        CloseReason.NODE_LOST,
    }
)

ENDINGS: Mapping[State, frozenset[CloseReason]] = {
    State.WAITING: _ANY_TIME | {CloseReason.WAIT_TIMEOUT},
    State.PAIRED: _ANY_TIME | {CloseReason.IDLE_TIMEOUT, CloseReason.STALLED, CloseReason.LINK_LOST},
    State.CLOSED: frozenset(),
}
"""Which reasons can end a session in which state. Those in no row refuse a leg and never reach a session."""

JOINS: Mapping[State, frozenset[int]] = {
    State.WAITING: frozenset({1}),
    State.PAIRED: frozenset(),
    State.CLOSED: frozenset(),
}
"""How many legs a session in this state may have for another one to join it."""


class TransitionError(RuntimeError):
    """The caller asked for a step that the tables don't have: a mistake of ours, never of a peer."""


class Session:
    """One rendezvous of two legs under a `session_id`. Times in seconds of the caller's monotonic clock."""

    __slots__ = ("close", "closed_at", "opened_at", "paired_at", "roles", "session_id", "state", "uuid")

    def __init__(self, uuid: UUID, session_id: str, first: Role, now: float) -> None:
        self.uuid = uuid
        self.session_id = session_id
        self.state = State.WAITING
        self.roles = frozenset({first})
        self.opened_at = now
        self.paired_at: float | None = None
        self.closed_at: float | None = None
        self.close: Close | None = None

    def pair(self, role: Role, now: float) -> None:
        """The leg of the other role came. Raises `TransitionError` if there is no place for it."""
        if len(self.roles) not in JOINS[self.state] or role in self.roles:
            raise TransitionError(f"a {role} can't join a session that is {self.state}")
        self.state = State.PAIRED
        self.roles |= {role}
        self.paired_at = now

    def end(self, close: Close, now: float) -> bool:
        """The session ends as `close` says. False if it had ended before: the first reason stands.

        Raises `TransitionError` for a reason that can't end a session in this state.
        """
        if self.state is State.CLOSED:
            return False
        if close.reason not in ENDINGS[self.state]:
            raise TransitionError(f"{close.reason} can't end a session that is {self.state}")
        self.state = State.CLOSED
        self.close = close
        self.closed_at = now
        return True

    def waiting_ms(self, now: float) -> int:
        """Whole milliseconds from the first leg's join to the peer's, or to the end, or to `now`."""
        return _milliseconds(self.opened_at, self._first_of(self.paired_at, self.closed_at, now))

    def paired_ms(self, now: float) -> int:
        """Whole milliseconds from the peer's join to the end, or to `now`; 0 if it never came."""
        if self.paired_at is None:
            return 0
        return _milliseconds(self.paired_at, self._first_of(self.closed_at, now))

    @staticmethod
    def _first_of(*times: float | None) -> float:
        return next(time for time in times if time is not None)


def _milliseconds(start: float, end: float) -> int:
    return max(0, round((end - start) * 1000))
