"""The page with the totals of each account in one month."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.http import QueryDict
from django.urls import reverse

from relay.ledger import figures

SHOWN = 200
"""Accounts on the page; one that isn't among them is found by its name."""

MONTHS = 12
"""To choose from, the present one included."""


def context(query: QueryDict, now: datetime) -> dict[str, Any]:
    """What the page shows for `query` (`month` as 2026-11, the present one unless given; `q`)."""
    months = [_first_of(now, back) for back in range(MONTHS)]
    start = next((month for month in months if f"{month:%Y-%m}" == query.get("month")), months[0])
    end = _first_of(start, -1)
    begins_with = query.get("q", "").strip()
    found = list(figures.account_totals(start, end, begins_with)[: SHOWN + 1])
    days = {"started_from": f"{start:%Y-%m-%d}", "started_to": f"{end - timedelta(days=1):%Y-%m-%d}"}
    sessions = reverse("admin:relay_relaysession_changelist")
    for row in found:
        account = row["account_id"]
        row["link"] = f"{sessions}?{urlencode({'account': account, **days})}" if account else ""
    return {
        "months": [(f"{month:%Y-%m}", f"{month:%B %Y}") for month in months],
        "month": f"{start:%Y-%m}",
        "month_name": f"{start:%B %Y}",
        "q": begins_with,
        "accounts": found[:SHOWN],
        "more": len(found) > SHOWN,
        "shown": SHOWN,
    }


def _first_of(moment: datetime, months_back: int) -> datetime:
    """The begin (UTC) of the month that is so many before that of `moment`."""
    months = moment.year * 12 + moment.month - 1 - months_back
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
