"""Ended sessions as bytes in one of the formats: window, query and stream, for the command and the admin.

The same window gives the same bytes on every database and at every run, except for what a spool brought in
since. Nothing in them depends on when or where the export is made, and memory doesn't grow with rows.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models import F, QuerySet

from relay.ledger.exports import columns, events
from relay.ledger.exports.formats import Csv, Encoder, FormatError, JsonLines, Options
from relay.ledger.exports.parquet import Parquet
from relay.ledger.records import iso
from relay.models import RelaySession

ROWS_IN_MEMORY = 2000
"""Rows fetched at a time: about 2 MB, and few enough round trips that they cost nothing."""

FORMATS = ("csv", "jsonl", "parquet", *events.FORMATS)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` on and before `end`, both aware; None is without a bound there.

    Raises `ValueError` where that is nothing.
    """

    start: datetime | None
    end: datetime | None

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"the window is empty: {iso(self.start)} is not before {iso(self.end)}")

    def __str__(self) -> str:
        start = "the first" if self.start is None else iso(self.start)
        return f"{start} to {'the last' if self.end is None else iso(self.end)}"


@dataclass(slots=True)
class Summary:
    """What an export holds; filled while it is streamed."""

    sessions: int = 0
    """Sessions and corrections that were read."""
    rows: int = 0
    """Of the file: sessions, events, or totals of a period. Headers don't count."""
    total_bytes: int = 0
    """Relayed, both ways."""
    file_bytes: int = 0
    accounts: set[str | None] = field(default_factory=set)
    """None where sessions name none."""
    first: str = ""
    """End of the earliest session, as ISO 8601; empty where there is none."""
    _digest: Any = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes so far, in hexadecimal."""
        return str(self._digest.hexdigest())

    def add(self, chunk: bytes) -> None:
        self.file_bytes += len(chunk)
        self._digest.update(chunk)


def moment(text: str) -> datetime:
    """An ISO 8601 date (its midnight) or date-time; UTC unless it says otherwise. Raises `ValueError`."""
    try:
        given = datetime.fromisoformat(text)
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"expected a date or date-time like 2026-11-01 or 2026-11-01T08:30Z, got {text!r}"
        ) from None


def month(text: str) -> Window:
    """A calendar month in UTC, written like 2026-11. Raises `ValueError`."""
    try:
        start = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
        if text != f"{start:%Y-%m}":
            raise ValueError(text)
        following = (start.year + 1, 1) if start.month == 12 else (start.year, start.month + 1)
        return Window(start, datetime(*following, 1, tzinfo=UTC))
    except ValueError:
        raise ValueError(f"expected a month like 2026-11, got {text!r}") from None


def account_exists(account: str, using: str = DEFAULT_DB_ALIAS) -> bool:
    """Whether there is any record of `account`, live ones included."""
    return RelaySession.objects.using(using).filter(account_id=account).exists()


def ended_sessions(
    window: Window, account: str | None = None, using: str = DEFAULT_DB_ALIAS
) -> QuerySet[RelaySession]:
    """The sessions and corrections that ended in `window`; no live ones."""
    sessions = RelaySession.objects.using(using).filter(timestamp__isnull=False)
    if window.start is not None:
        sessions = sessions.filter(timestamp__gte=window.start)
    if window.end is not None:
        sessions = sessions.filter(timestamp__lt=window.end)
    return sessions if account is None else sessions.filter(account_id=account)


def stream(
    sessions: QuerySet[RelaySession],
    form: str,
    options: Options | None = None,
    *,
    by: str = "session",
    summary: Summary | None = None,
    progress: Callable[[int], object] | None = None,
) -> Generator[bytes]:
    """The ended ones of `sessions`, by end and UUID, in format `form` (one of `FORMATS`).

    With `by` "day" or "month": totals for each account and each of these periods in UTC. `summary` is filled
    on the way, `progress` is told how many sessions came. Raises what the database raises, before the first
    chunk where it is away; `FormatError` for what the format can't hold.

    On PostgreSQL a transaction is open until the generator is used up or closed.
    """
    summary = Summary() if summary is None else summary
    sessions = sessions.filter(timestamp__isnull=False)
    fields = columns.SESSION if by == "session" else columns.TOTALS
    encoder = _encoder(form, fields, options or Options())
    rows = _by_session(sessions) if by == "session" else _by_period(sessions, by)
    batches = iter(partial(lambda: list(islice(rows, ROWS_IN_MEMORY))), [])
    read = _reader(fields, summary, progress)
    first = next(batches, [])  # before the header, so that a database that is away leaves nothing behind
    read(first)
    for make in (encoder.begin, partial(encoder.encode, first)):
        yield from _counted(make(), summary)
    for batch in batches:
        read(batch)
        yield from _counted(encoder.encode(batch), summary)
    yield from _counted(encoder.end(), summary)
    summary.rows = encoder.rows


def _encoder(form: str, fields: tuple[columns.Column, ...], options: Options) -> Encoder:
    if form in events.FORMATS:
        if fields is not columns.SESSION:
            raise FormatError(f"{form} has one event for each session: expected --by session")
        events.check(options)
        return events.FORMATS[form](fields, options)
    tables: dict[str, Callable[[Sequence[columns.Column]], Encoder]] = {
        "csv": Csv,
        "jsonl": JsonLines,
        "parquet": Parquet,
    }
    return tables[form](fields)


def _counted(chunk: bytes, summary: Summary) -> Iterator[bytes]:
    if chunk:
        summary.add(chunk)
        yield chunk


def _reader(
    fields: tuple[columns.Column, ...], summary: Summary, progress: Callable[[int], object] | None
) -> Callable[[list[Row]], None]:
    names = [column.name for column in fields]
    account, total = names.index("account_id"), names.index("total_bytes")
    count = names.index("sessions") if "sessions" in names else None
    ended = names.index("timestamp") if "timestamp" in names else None

    def read(rows: list[Row]) -> None:
        sessions = len(rows) if count is None else sum(row[count] for row in rows)
        if not summary.sessions and rows and ended is not None:
            summary.first = rows[0][ended]
        summary.sessions += sessions
        summary.total_bytes += sum([row[total] for row in rows])
        summary.accounts.update({row[account] for row in rows})
        if progress is not None:
            progress(sessions)

    return read


def _by_session(sessions: QuerySet[RelaySession]) -> Generator[Row]:
    rows = sessions.order_by("timestamp", "session_uuid").values_list(
        *(column.expression for column in columns.SESSION)
    )
    # PostgreSQL streams a cursor inside a transaction, and outside of one would store the whole result first.
    # SQLite streams anyway, and a transaction (IMMEDIATE here) would keep the relay from writing meanwhile.
    using = sessions.db
    streaming = transaction.atomic(using) if connections[using].vendor == "postgresql" else nullcontext()
    with streaming:
        yield from rows.iterator(chunk_size=ROWS_IN_MEMORY)


def _by_period(sessions: QuerySet[RelaySession], by: str) -> Generator[Row]:
    """One row for each account and period: as many as these, so they needn't be streamed."""
    groups = sessions.order_by().annotate(period=columns.period(by)).values("period", "account_id")
    sums = {
        column.name: column.expression
        for column in columns.TOTALS
        if column.name not in ("period", "account_id")
    }
    found = groups.annotate(**{f"sum_{name}": sums[name] for name in sums})
    names = [
        column.name if column.name in ("period", "account_id") else f"sum_{column.name}"
        for column in columns.TOTALS
    ]
    rows = found.order_by("period", columns.bytewise(F("account_id")).asc(nulls_first=True))
    scales = [1000 if name.endswith("_seconds") else 0 for name in names]
    for row in rows.values_list(*names).iterator(chunk_size=ROWS_IN_MEMORY):
        yield tuple(value / scale if scale else value for value, scale in zip(row, scales, strict=True))
