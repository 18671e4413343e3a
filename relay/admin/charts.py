"""Geometry of the charts: bars as parts of a hundred, and the marks on their axis. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from relay.ledger.figures import Period
from relay.models import RelaySession
from relay.rules.units import human_bytes

MOST_PARTS = 40
"""Columns in the chart of one session: what a phone still shows apart."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of stacked bars. Heights are percent of the chart."""

    label: str
    """What stands below it, if anything."""
    name: str
    """What it is about, in words."""
    up: float
    down: float
    period: Period


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across the chart."""

    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    columns: tuple[Column, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """One row of a list with bars: `width` is percent of the longest."""

    name: str
    value: str
    width: float
    link: str = ""
    note: str = ""


def periods(given: Sequence[Period], name: str, label: str, every: int) -> Chart:
    """A chart of bytes over time. `name` and `label` are `strftime` forms; a label below `every` so many."""
    top = scale(max((period.total_bytes for period in given), default=0))
    columns = tuple(
        Column(
            label=period.start.strftime(label) if (len(given) - 1 - i) % every == 0 else "",
            name=period.start.strftime(name),
            up=round(100 * period.bytes_client_to_server / top, 2),
            down=round(100 * period.bytes_server_to_client / top, 2),
            period=period,
        )
        for i, period in enumerate(given)
    )
    return Chart(columns, tuple(Mark(100 * i / 4, _short(top * i // 4)) for i in (4, 3, 2, 1)))


def traffic(session: RelaySession) -> Chart | None:
    """The bytes of an ended session over its time, by the points in its record; None where they say nothing.

    In as many parts of equal length as there are points; between two points the bytes are taken to have come
    evenly.
    """
    points = [(0, 0, 0), *(tuple(point) for point in session.traffic)]
    whole_ms = points[-1][0]
    parts = min(len(points) - 1, MOST_PARTS)
    if parts < 2 or not whole_ms:
        return None
    sums = [[0.0, 0.0] for _ in range(parts)]
    for (begin, up_before, down_before), (end, up, down) in pairwise(points):
        first, last = begin * parts / whole_ms, end * parts / whole_ms
        for part in range(int(first), min(int(last) + 1, parts)):
            within = (min(last, part + 1) - max(first, part)) / (last - first) if last > first else 0.0
            sums[part][0] += within * (up - up_before)
            sums[part][1] += within * (down - down_before)
    step = timedelta(milliseconds=whole_ms / parts)
    spans = [
        Period(session.started_at + i * step, 0, round(up), round(down)) for i, (up, down) in enumerate(sums)
    ]
    return periods(spans, "%d %b, %H:%M:%S", "%H:%M:%S", max(1, parts // 4))


def scale(most: int) -> int:
    """The top of an axis that has room for `most` and whose quarters read well; at least 4 KiB."""
    unit = 1024
    while unit * 1024 <= most:
        unit *= 1024
    for factor in (4, 8, 20, 40, 80, 200, 400, 800, 1200):
        if most <= factor * unit:
            return factor * unit
    return 4 * 1024 * unit


def shares(rows: Sequence[tuple[str, int, str, str, str]]) -> tuple[Share, ...]:
    """Rows of name, number, the number as text, link and note, with bars."""
    most = max((row[1] for row in rows), default=0) or 1
    return tuple(
        Share(name, value, round(100 * number / most, 2), link, note)
        for name, number, value, link, note in rows
    )


def _short(count: int) -> str:
    return human_bytes(count).replace(".0 ", " ")
