"""The figures of the dashboard: what is live, what was relayed when, for whom, and how sessions ended.

On a million sessions a month each query here takes well under 100 ms, without an index of its own:

- What covers the last day reads that day's rows through `relay_session_ended`, a range of about 1/30 of them,
  which lie side by side on the disk. A covering index would spare that, at the price of a dearer checkpoint:
  a column that is in any index can't be updated in place (PostgreSQL's HOT), and checkpoints change the very
  columns that are summed here, of every live session, every few seconds.
- The month is read a day at a time in the same way, and a day that is over is kept in Django's cache; not for
  ever, as records may come late (a replayed spool), but the longer, the longer it has been over.
- What is live is found by the indexes that live rows have.
- No roll-up table: the ledger would have to keep it in the transaction that ends a session, where all nodes
  would wait for each other at the row of this day and a large account.

`make bench-admin` measures all of them on a million sessions.

Bytes count for the hour and day in which their session ended, as in bills and exports; a correction changes
the bytes of its own, and is no session.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db.models import Count, F, Q, QuerySet, Sum
from django.db.models.functions import TruncHour

from relay.models import RelayLeg, RelayNode, RelaySession

HOURS = 24
DAYS = 30

CLOSED_DAY_SECONDS = 600
"""How long yesterday's sums are believed, and those of the day before it twice as long, and so on: what a
spool brings late is seen after that. Nor are all days read again at once."""

TOP_ACCOUNTS = 8

WAITING_SECONDS = (1, 2, 5, 10, 30, 60)
DURATION_SECONDS = (10, 60, 300, 900, 3600, 14_400)
"""Upper bounds of the bins of the two distributions; a last bin holds what is above."""


@dataclass(frozen=True, slots=True)
class Period:
    """What ended in one hour or day, from `start` (aware) on."""

    start: datetime
    sessions: int = 0
    bytes_client_to_server: int = 0
    bytes_server_to_client: int = 0

    @property
    def total_bytes(self) -> int:
        return self.bytes_client_to_server + self.bytes_server_to_client


@dataclass(frozen=True, slots=True)
class Live:
    """What goes on at this moment, by the last records of those that do it."""

    waiting: int
    paired: int
    legs: int
    nodes: int
    total_bytes: int

    @property
    def sessions(self) -> int:
        return self.waiting + self.paired


@dataclass(frozen=True, slots=True)
class Figures:
    at: datetime
    live: Live
    hours: tuple[Period, ...]
    """The last 24, the present one included, oldest first."""
    days: tuple[Period, ...]
    """The last 30 (UTC), today included, oldest first."""
    reasons: tuple[tuple[str, int], ...]
    """Close reasons and sessions in the hours above, most first."""
    accounts: tuple[tuple[str | None, int, int], ...]
    """Accounts, sessions and bytes in the hours above, most bytes first."""
    waiting: tuple[int, ...]
    """Sessions by how long they waited for the peer, in the bins of `WAITING_SECONDS`; paired ones only."""
    durations: tuple[int, ...]
    """Sessions by how long they lasted, in the bins of `DURATION_SECONDS`."""

    @property
    def sessions(self) -> int:
        """Ended in the hours above."""
        return sum(hour.sessions for hour in self.hours)

    @property
    def total_bytes(self) -> int:
        """Of those."""
        return sum(hour.total_bytes for hour in self.hours)


def figures(now: datetime) -> Figures:
    """The figures as of `now` (aware)."""
    now = now.astimezone(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    ended = RelaySession.objects.filter(timestamp__gte=hour - timedelta(hours=HOURS - 1))
    waiting, durations = distributions(ended)
    return Figures(
        at=now,
        live=live(),
        hours=hours(ended, hour),
        days=days(now),
        reasons=reasons(ended),
        accounts=top_accounts(ended),
        waiting=waiting,
        durations=durations,
    )


def live() -> Live:
    """What is live, in the whole cluster."""
    sums = RelaySession.objects.filter(timestamp__isnull=True).aggregate(
        sessions=Count("pk"), paired=Count("paired_at"), total_bytes=Sum("total_bytes", default=0)
    )
    return Live(
        waiting=sums["sessions"] - sums["paired"],
        paired=sums["paired"],
        legs=RelayLeg.objects.filter(left_at__isnull=True).count(),
        nodes=RelayNode.objects.count(),
        total_bytes=sums["total_bytes"],
    )


SUMS: dict[str, Any] = {
    "sessions": Count("pk", filter=Q(corrects=None)),
    "bytes_client_to_server": Sum("bytes_client_to_server", default=0),
    "bytes_server_to_client": Sum("bytes_server_to_client", default=0),
}


def hours(ended: QuerySet[RelaySession], last: datetime) -> tuple[Period, ...]:
    """What `ended`, by the hour, up to the one that begins at `last`; those without anything too."""
    found = ended.annotate(start=TruncHour("timestamp", tzinfo=UTC)).values("start").annotate(**SUMS)
    by_start = {row["start"]: Period(**row) for row in found.order_by()}
    starts = (last - timedelta(hours=back) for back in reversed(range(HOURS)))
    return tuple(by_start.get(start, Period(start)) for start in starts)


def days(now: datetime) -> tuple[Period, ...]:
    """What ended on each of the last days, today included."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    kept = cache.get_many(_day_key(today - timedelta(days=back)) for back in range(1, DAYS))
    found = []
    for back in range(DAYS - 1, 0, -1):
        day = today - timedelta(days=back)
        period = kept.get(_day_key(day))
        if period is None:
            period = _day(day)
            cache.set(_day_key(day), period, CLOSED_DAY_SECONDS * back)
        found.append(period)
    return (*found, _day(today))


def _day_key(day: datetime) -> str:
    return f"relay.figures.day.{day:%Y-%m-%d}"


def _day(day: datetime) -> Period:
    ended = RelaySession.objects.filter(timestamp__gte=day, timestamp__lt=day + timedelta(days=1))
    return Period(day, **ended.aggregate(**SUMS))


def reasons(ended: QuerySet[RelaySession]) -> tuple[tuple[str, int], ...]:
    """Close reasons of what `ended`, and how often; most first."""
    found = ended.filter(corrects=None).values_list("reason").annotate(count=Count("pk"))
    return tuple(found.order_by("-count", "reason"))


def top_accounts(ended: QuerySet[RelaySession]) -> tuple[tuple[str | None, int, int], ...]:
    """The accounts with the most bytes in what `ended`: account, sessions and bytes."""
    found = ended.values_list("account_id").annotate(sessions=SUMS["sessions"], sum=Sum("total_bytes"))
    return tuple(found.order_by("-sum", "account_id")[:TOP_ACCOUNTS])


def distributions(ended: QuerySet[RelaySession]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many of what `ended` waited, and lasted, how long: one query for all bins of both."""
    bins = {
        f"waiting_{i}": Count("pk", filter=Q(paired_at__isnull=False) & within)
        for i, within in enumerate(_bins("waiting_seconds", WAITING_SECONDS))
    } | {
        f"duration_{i}": Count("pk", filter=within)
        for i, within in enumerate(_bins("duration_seconds", DURATION_SECONDS))
    }
    counts = ended.filter(corrects=None).aggregate(**bins)
    return (
        tuple(counts[f"waiting_{i}"] for i in range(len(WAITING_SECONDS) + 1)),
        tuple(counts[f"duration_{i}"] for i in range(len(DURATION_SECONDS) + 1)),
    )


def _bins(column: str, bounds: Iterable[int]) -> list[Q]:
    bounds = list(bounds)
    low = [Q(), *(Q(**{f"{column}__gte": bound}) for bound in bounds)]
    high = [*(Q(**{f"{column}__lt": bound}) for bound in bounds), Q()]
    return [above & below for above, below in zip(low, high, strict=True)]


def account_totals(start: datetime, end: datetime, begins_with: str = "") -> QuerySet[RelaySession, Any]:
    """What each account comes to in the sessions that ended from `start` on and before `end`, as dicts.

    Most bytes first. With `begins_with`, only accounts that do. Reads each session of the window once, so
    a month of a million takes longer than anything else here: it's asked for by a person, not by a timer.
    """
    ended = RelaySession.objects.filter(timestamp__gte=start, timestamp__lt=end)
    if begins_with:
        ended = ended.filter(account_id__startswith=begins_with)
    sums = SUMS | {"bytes": Sum("total_bytes"), "paired": Sum("paired_seconds")}
    return ended.values("account_id").annotate(**sums).order_by(F("bytes").desc(), "account_id")
