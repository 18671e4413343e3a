"""What the dashboard shows: the figures of the ledger in words and shapes, and the health of the backends."""

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse

from relay import conf, readiness
from relay.admin import charts
from relay.ledger import figures
from relay.rules.units import human_bytes

REFRESH_SECONDS = 10
"""Between two looks of an open page: a live session's record changes no more often than that."""

KEPT_SECONDS = 3
"""How long figures serve everybody who looks: many open pages ask the database no more than a few."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the relay, and what is wrong with it; an empty `failing` is good."""

    name: str
    failing: str
    text: str


def shown(request: HttpRequest) -> str:
    """The dashboard's content as HTML; it's what an open page asks for again and again."""
    return render_to_string("relay/admin/figures.html", context(datetime.now(UTC)), request)


def context(now: datetime) -> dict[str, Any]:
    """All that the template shows."""
    found = cache.get("relay.figures")
    if found is None:
        found = figures.figures(now)
        cache.set("relay.figures", found, KEPT_SECONDS)
    sessions = reverse("admin:relay_relaysession_changelist")
    return {
        "figures": found,
        "hours": charts.periods(found.hours, "%d %b, %H:00", "%H", 6),
        "days": charts.periods(found.days, "%a, %d %b", "%d %b", 7),
        "reasons": charts.shares(
            [
                (reason, count, f"{count:,}", f"{sessions}?{urlencode({'reason': reason})}", "")
                for reason, count in found.reasons
            ]
        ),
        "accounts": charts.shares(
            [
                (
                    *(account or "no account", total, human_bytes(total)),
                    f"{sessions}?{urlencode({'account': account})}" if account else "",
                    f"{count:,} session{'' if count == 1 else 's'}",
                )
                for account, count, total in found.accounts
            ]
        ),
        "waiting": _distribution(found.waiting, figures.WAITING_SECONDS),
        "durations": _distribution(found.durations, figures.DURATION_SECONDS),
        "parts": health(),
    }


def health() -> list[Part]:
    """Each backend of the node that answers, as `/ready` has it."""
    failing = async_to_sync(readiness.failing)()
    redis = "; ".join(
        f"{part}: {failing[part]}" for part in ("channel layer", "rendezvous") if part in failing
    )
    return [
        Part("This node", failing.get("node", ""), "takes new sessions"),
        Part("Database", failing.get("database", ""), "answers"),
        Part("Redis", redis, "answers" if conf.current().redis_url else "not used"),
        Part("Spool", failing.get("spool", ""), "can be written to"),
    ]


def _distribution(counts: tuple[int, ...], bounds: tuple[int, ...]) -> tuple[charts.Share, ...]:
    ends = [_bound(bound) for bound in bounds]
    names = [
        f"under {ends[0]}",
        *(f"{a} to {b}" for a, b in pairwise(ends)),
        f"{ends[-1]} or more",
    ]
    total = sum(counts) or 1
    return charts.shares(
        [
            (name, count, f"{100 * count / total:.0f} %", "", f"{count:,}")
            for name, count in zip(names, counts, strict=True)
        ]
    )


def _bound(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h"
