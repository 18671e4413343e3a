"""The columns of an export: their names, their types, and their values as both databases make them alike.

Times and UUIDs are made text by the database: it does that in a tenth of the time that Python takes.
"""

from dataclasses import dataclass
from typing import Any

from django.db.models import BigIntegerField, CharField, Count, F, FloatField, Func, Sum
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast, Left, Round

from relay.ledger.records import LINE_FIELDS


class Iso(Func):
    """A date-time as ISO 8601 in UTC with milliseconds and `Z`, as `records.iso` makes it."""

    output_field = CharField()
    template = "to_char(%(expressions)s AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # Django keeps `2026-11-03 12:00:00`, and a fraction of six digits where there is one. SQLite's own
        # functions for times go through a floating-point number, and cut off what that lost.
        template = "replace(substr(%(expressions)s || '.000', 1, 23), ' ', 'T') || 'Z'"
        return self.as_sql(compiler, connection, template=template, **context)


class UuidText(Func):
    """A UUID with its hyphens; null stays null."""

    output_field = CharField()
    template = "(%(expressions)s)::text"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        ends = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
        template = " || '-' || ".join(f"substr(%(expressions)s, {at}, {length})" for at, length in ends)
        return self.as_sql(compiler, connection, template=f"({template})", **context)


class _Bytewise(Func):
    output_field = CharField()
    template = '%(expressions)s COLLATE "C"'

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="%(expressions)s COLLATE BINARY", **context)


def bytewise(expression: Combinable) -> Func:
    """Text to sort by its UTF-8 bytes, whatever the language of the database."""
    return _Bytewise(expression)


def period(by: str) -> Func:
    """The day (2026-11-03) or the month (2026-11), in UTC, in which a session ended."""
    return Left(Iso("timestamp"), {"day": 10, "month": 7}[by], output_field=CharField())


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `kind` is text, integer, number or time (ISO 8601 text)."""

    name: str
    kind: str
    expression: Any


def _kind(name: str) -> str:
    if name.startswith(("bytes_", "frames_")) or name in ("total_bytes", "revision", "sessions"):
        return "integer"
    if name.endswith("_seconds"):
        return "number"
    return "time" if name == "timestamp" else "text"


_EXPRESSIONS = {
    "timestamp": Iso("timestamp"),
    "session_uuid": UuidText("session_uuid"),
    "corrects": UuidText("corrects_id"),
}

SESSION = tuple(
    Column(name, _kind(name), _EXPRESSIONS.get(name, F(name)))
    for name in (*LINE_FIELDS, "corrects", "revision")
)
"""Of one session: what its log line has after `event`, then the UUID of the session that a correction
corrects and the number of the correction (empty and 0 otherwise)."""

_COUNTERS = tuple(name for name in LINE_FIELDS if _kind(name) == "integer")
_DURATIONS = tuple(name for name in LINE_FIELDS if _kind(name) == "number")


def _milliseconds(name: str) -> Sum:
    # Whole numbers: a sum of fractions depends on the order in which a database happens to add them.
    rounded = Round(F(name) * 1000, output_field=FloatField())
    return Sum(Cast(rounded, BigIntegerField()), output_field=BigIntegerField())


TOTALS = (
    Column("period", "text", None),
    Column("account_id", "text", None),
    Column("sessions", "integer", Count("session_uuid") - Count("corrects_id")),
    *(Column(name, "integer", Cast(Sum(name), BigIntegerField())) for name in _COUNTERS),
    *(Column(name, "number", _milliseconds(name)) for name in _DURATIONS),
)
"""Of one account in one period. Corrections count where they were made, and not as sessions."""
