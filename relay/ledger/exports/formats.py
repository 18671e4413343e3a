"""What a format of an export is, and the two plain ones: CSV and JSON Lines."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from relay.ledger.exports.columns import Column

Rows = Sequence[tuple[Any, ...]]


class FormatError(ValueError):
    """A format that can't be made: it lacks a package, or can't hold a value. The text is one line."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator chooses of the events; the other formats have none of it."""

    measure: str = "total_bytes"
    """The column that is billed, of those in `events.MEASURES`."""
    event_name: str = ""
    """As the meter or metric is called there; empty: `relay_` and the measure."""

    @property
    def name(self) -> str:
        return self.event_name or f"relay_{self.measure}"


class Encoder(Protocol):
    """One file in the making. `rows` says how many it holds so far, without headers."""

    rows: int

    def begin(self) -> bytes:
        """What comes before the rows."""

    def encode(self, rows: Rows) -> bytes:
        """`rows`, or what is due of them: an encoder may keep some until there are more."""

    def end(self) -> bytes:
        """What is left, and what comes after the rows."""


class Csv:
    """A header; lines end in a newline, None is empty (RFC 4180 but for the line end)."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.rows = 0
        self._columns = columns

    def begin(self) -> bytes:
        return self._lines([[column.name for column in self._columns]])

    def encode(self, rows: Rows) -> bytes:
        self.rows += len(rows)
        return self._lines(rows)

    def end(self) -> bytes:
        return b""

    def _lines(self, rows: Sequence[Sequence[Any]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        if "\r" in text.getvalue():
            text = io.StringIO()
            plain = csv.writer(text, lineterminator="\n")
            quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
            for row in rows:
                # Python quotes no carriage return before 3.13, and its readers end a row there.
                returns = any(isinstance(value, str) and "\r" in value for value in row)
                (quoted if returns else plain).writerow(row)
        return text.getvalue().encode()


class JsonLines:
    """One JSON object a line, ASCII, keys in the order of the columns."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.rows = 0
        self._names = [column.name for column in columns]

    def begin(self) -> bytes:
        return b""

    def encode(self, rows: Rows) -> bytes:
        self.rows += len(rows)
        return "".join(json.dumps(dict(zip(self._names, row, strict=True))) + "\n" for row in rows).encode()

    def end(self) -> bytes:
        return b""
