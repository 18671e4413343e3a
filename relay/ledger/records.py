"""What the ledger is told: a session and its legs as they stand at one moment, and the log line of an end.

Pure values. Times are aware datetimes, kept in UTC and cut to the millisecond; durations are whole
milliseconds, so that waiting and paired add up to the duration exactly in the row, the line and the export.
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from relay.models import ADDRESS_LENGTH, NAME_LENGTH, SESSION_ID_LENGTH
from relay.rules.closing import MAX_REASON_BYTES, CloseReason
from relay.rules.roles import Role
from relay.rules.traffic import Point

LINE_FIELDS = (
    "session_id",
    "duration_seconds",
    "bytes_client_to_server",
    "bytes_server_to_client",
    "total_bytes",
    "timestamp",
    "session_uuid",
    "account_id",
    "reason",
    "waiting_seconds",
    "paired_seconds",
    "frames_client_to_server",
    "frames_server_to_client",
)
"""The names in a log line after `event`, in their order; exports have the same."""

LEG_TEXTS = (
    ("subject", NAME_LENGTH),
    ("account_id", NAME_LENGTH),
    ("token_id", NAME_LENGTH),
    ("address", ADDRESS_LENGTH),
    ("node", NAME_LENGTH),
    ("close_reason", MAX_REASON_BYTES),
)
SESSION_TEXTS = (("session_id", SESSION_ID_LENGTH), ("account_id", NAME_LENGTH), ("node", NAME_LENGTH))
"""Texts that are made fit, with their lengths at most."""


def milliseconds(seconds: float) -> int:
    """A duration of a monotonic clock in whole milliseconds, rounded once; never negative."""
    return max(0, round(seconds * 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class LegRecord:
    """One leg. Live while `left_at` is None; once that is written, nothing changes the row any more.

    Texts that a database can't hold (NUL, lone surrogates, too long) are made fit, never refused: they come
    from tokens and sockets, and a usage record must not be lost over one. Raises `ValueError` for a time
    without a time zone.
    """

    leg_uuid: UUID
    role: str
    """`client` or `server`."""
    joined_at: datetime
    subject: str = ""
    account_id: str | None = None
    token_id: str = ""
    """The token's `jti`, empty without one."""
    address: str = ""
    node: str = ""
    left_at: datetime | None = None
    bytes_received: int = 0
    """Payload bytes handed to this participant's connection."""
    frames_received: int = 0
    close_code: int | None = None
    """RFC 6455 section 7.4; None while live or where the connection dropped without one."""
    close_reason: str = ""
    """The text of the close frame, at most 123 bytes of UTF-8."""

    def __post_init__(self) -> None:
        _make_fit(self, LEG_TEXTS, times=("joined_at", "left_at"))

    @property
    def closed(self) -> bool:
        return self.left_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One session. Live while `timestamp` is None; closed with a `reason` and the `timestamp` of its end.

    Raises `ValueError` for a time without a time zone and for an end without a reason, or the reverse. Texts
    are made fit as in `LegRecord`.
    """

    session_uuid: UUID
    session_id: str
    started_at: datetime
    account_id: str | None = None
    waiting_ms: int = 0
    """Whole milliseconds from the first leg's join to the second's, or to the end (see `milliseconds`)."""
    paired_ms: int = 0
    """Whole milliseconds from the second leg's join to the end."""
    bytes_client_to_server: int = 0
    bytes_server_to_client: int = 0
    frames_client_to_server: int = 0
    frames_server_to_client: int = 0
    paired_at: datetime | None = None
    timestamp: datetime | None = None
    reason: str = ""
    """A word of `relay.rules.closing.CloseReason`, empty while live."""
    node: str = ""
    legs: tuple[LegRecord, ...] = ()
    traffic: tuple[Point, ...] = ()
    """How its bytes grew, see `relay.rules.traffic`. Of a closed one: a checkpoint would write it anew."""
    owned: bool = True
    """False where another node writes the session's row: here it's only made if it's not there yet, so that
    the legs have something to belong to."""

    def __post_init__(self) -> None:
        if self.closed and not self.owned:
            raise ValueError("a session is closed by the node that owns it")
        if self.closed != bool(self.reason):
            raise ValueError("a closed session has both timestamp and reason, a live one neither")
        _make_fit(self, SESSION_TEXTS, times=("started_at", "paired_at", "timestamp"))

    @property
    def closed(self) -> bool:
        return self.timestamp is not None

    @property
    def across_nodes(self) -> bool:
        """Whether another node has its other leg, and may close it, too."""
        return self.paired_at is not None and len(self.legs) < len(Role)

    @property
    def waiting_seconds(self) -> float:
        return self.waiting_ms / 1000

    @property
    def paired_seconds(self) -> float:
        return self.paired_ms / 1000

    @property
    def duration_seconds(self) -> float:
        return (self.waiting_ms + self.paired_ms) / 1000

    @property
    def total_bytes(self) -> int:
        return self.bytes_client_to_server + self.bytes_server_to_client


def merge(older: SessionRecord | None, newer: SessionRecord) -> SessionRecord:
    """What is known after `newer` came on top of `older`: what has ended stays, else the newer counts.

    The same rule as the upsert's in the database, so that a record means the same whether it waited in
    memory or was written. A leg may leave after its session has closed.
    """
    if older is None or (
        not older.closed
        and len(older.legs) <= len(newer.legs)
        and all(
            before.leg_uuid == after.leg_uuid and not before.closed
            for before, after in zip(older.legs, newer.legs, strict=False)
        )
    ):
        return newer  # nothing had ended: by far the most frequent case
    legs = {leg.leg_uuid: leg for leg in older.legs}
    for leg in newer.legs:
        if leg.leg_uuid not in legs or not legs[leg.leg_uuid].closed:
            legs[leg.leg_uuid] = leg
    return replace(older if older.closed else newer, legs=tuple(legs.values()))


COUNTED = (
    "bytes_client_to_server",
    "bytes_server_to_client",
    "frames_client_to_server",
    "frames_server_to_client",
)
"""What is counted of a session."""


def rest_of(record: SessionRecord, settled: SessionRecord) -> SessionRecord | None:
    """What `record` says beyond `settled`, as which others have closed the session.

    A record of its own, since a closed one never changes: with the differences, and a UUID that follows from
    the session's (version 5, RFC 9562 section 5.5), so that telling it twice makes no second one. None if
    there is nothing to tell: where nothing more was counted, how the session of a lost node really ended is.
    """
    more = {
        name: max(0, getattr(record, name) - getattr(settled, name))
        for name in (*COUNTED, "waiting_ms", "paired_ms")
    }
    ends_what_was_lost = record.closed and settled.reason == CloseReason.NODE_LOST
    if not ends_what_was_lost and not any(more[name] for name in COUNTED):
        return None
    uuid = uuid5(record.session_uuid, "after node_lost")
    return replace(record, session_uuid=uuid, legs=(), traffic=(), **more)


def cut(moment: datetime) -> datetime:
    """`moment` without what is finer than milliseconds."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`; `moment` is aware."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def plain(value: Any) -> Any:
    """A field's value as the log line and the exports show it: times as `iso`, a UUID with its hyphens."""
    if isinstance(value, datetime):
        return iso(value)
    return str(value) if isinstance(value, UUID) else value


def log_line(record: SessionRecord) -> str:
    """The `session_closed` JSON line of a closed session (DESIGN section 8): ASCII, without the newline."""
    line = {"event": "session_closed"}
    line.update((name, plain(getattr(record, name))) for name in LINE_FIELDS)
    return json.dumps(line)


def _make_fit(
    record: SessionRecord | LegRecord, texts: tuple[tuple[str, int], ...], times: tuple[str, ...]
) -> None:
    # Nearly all is fit already, and a checkpoint makes thousands of records.
    for name, length in texts:
        text = getattr(record, name)
        if text and not (text.isascii() and len(text) <= length and "\0" not in text):
            fit = text.encode(errors="replace").decode().replace("\0", "\ufffd")[:length]
            object.__setattr__(record, name, fit)
    for name in times:
        moment = getattr(record, name)
        if moment is None or (moment.tzinfo is UTC and not moment.microsecond % 1000):
            continue
        if moment.tzinfo is None:
            raise ValueError(f"{name}: {moment} has no time zone")
        object.__setattr__(record, name, cut(moment.astimezone(UTC)))
