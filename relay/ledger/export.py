"""Ended sessions as CSV or JSON Lines: the query, the window and the forms, for the command and the admin.

The names and the forms of the values are those of the log line, without `event`. The same window gives the
same bytes on every database and at every run.
"""

import csv
import json
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Protocol

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from relay.ledger.records import LINE_FIELDS, iso, plain
from relay.models import RelaySession

FORMATS = ("csv", "jsonl")

ROWS_IN_MEMORY = 2000
"""Rows fetched at a time: about 2 MB, and few enough round trips that they cost nothing."""

Row = tuple[Any, ...]


class TextSink(Protocol):
    """What text is written to."""

    def write(self, text: str, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` on and before `end`, both aware. Raises `ValueError` where that is nothing."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"the window is empty: {iso(self.start)} is not before {iso(self.end)}")

    def __str__(self) -> str:
        return f"{iso(self.start)} to {iso(self.end)}"


@dataclass(slots=True)
class Summary:
    """What an export held."""

    sessions: int = 0
    total_bytes: int = 0


def moment(text: str) -> datetime:
    """An ISO 8601 date (its midnight) or date-time; UTC unless it says otherwise. Raises `ValueError`."""
    try:
        given = datetime.fromisoformat(text)
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"expected a date or date-time like 2026-11-01 or 2026-11-01T08:30Z, got {text!r}"
        ) from None


def account_exists(account: str, using: str = DEFAULT_DB_ALIAS) -> bool:
    """Whether there is any record of `account`, live ones included."""
    return RelaySession.objects.using(using).filter(account_id=account).exists()


def ended_sessions(
    window: Window, account: str | None = None, using: str = DEFAULT_DB_ALIAS
) -> Generator[Row]:
    """The sessions that ended in `window`, by end and UUID, as values in the order of `LINE_FIELDS`.

    Streamed: memory doesn't grow with rows. One statement, so what ends meanwhile is either in it or not.
    """
    sessions = RelaySession.objects.using(using).filter(timestamp__gte=window.start, timestamp__lt=window.end)
    if account is not None:
        sessions = sessions.filter(account_id=account)
    rows = sessions.order_by("timestamp", "session_uuid").values_list(*LINE_FIELDS)
    # PostgreSQL streams a cursor inside a transaction, and outside of one would store the whole result first.
    # SQLite streams anyway, and a transaction (IMMEDIATE here) would keep the relay from writing meanwhile.
    streaming = transaction.atomic(using) if connections[using].vendor == "postgresql" else nullcontext()
    with streaming:
        yield from rows.iterator(chunk_size=ROWS_IN_MEMORY)


def write(rows: Iterable[Row], form: str, sink: TextSink) -> Summary:
    """Write `rows` to `sink` as `csv` (a header, lines end in a newline, None is empty) or `jsonl`.

    Nothing is written before the first row is there, so a database that is away leaves `sink` untouched.
    """
    rows = iter(rows)
    first = list(islice(rows, 1))
    summary = Summary()
    total_bytes = LINE_FIELDS.index("total_bytes")
    table = csv.writer(sink, lineterminator="\n") if form == "csv" else None
    if table:
        table.writerow(LINE_FIELDS)
    for row in chain(first, rows):
        values = [plain(value) for value in row]
        if table:
            table.writerow(values)
        else:
            sink.write(json.dumps(dict(zip(LINE_FIELDS, values, strict=True))) + "\n")
        summary.sessions += 1
        summary.total_bytes += row[total_bytes]
    return summary
