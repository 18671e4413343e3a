"""Geometry of the dashboard's charts: bars as parts of a hundred, and the marks on their axis. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass

from relay.ledger.figures import Period
from relay.units import human_bytes


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
