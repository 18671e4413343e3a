"""The dashboard's figures are those of the records, however they are asked for."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache

from relay.admin import charts
from relay.ledger import figures
from relay.ledger.records import SessionRecord
from relay.ledger.writing import rows
from relay.management import generated
from relay.rules.units import human_bytes
from tests.databases import Database
from tests.usage.samples import ended, leg, live

NOW = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    cache.clear()


@pytest.fixture
def records(database: Database) -> list[SessionRecord]:
    made = list(generated.sessions(400, 40, NOW, seed=3))
    rows.write(made, "default")
    return made


def test_hours_and_days_add_up_to_the_records_and_none_is_missing(records: list[SessionRecord]) -> None:
    found = figures.figures(NOW)
    by_hour: dict[datetime, int] = defaultdict(int)
    by_day: dict[datetime, int] = defaultdict(int)
    for record in records:
        by_hour[record.timestamp.replace(minute=0, second=0, microsecond=0)] += record.total_bytes
        by_day[record.timestamp.replace(hour=0, minute=0, second=0, microsecond=0)] += record.total_bytes
    first = NOW.replace(minute=0) - timedelta(hours=23)
    assert [(hour.start, hour.total_bytes) for hour in found.hours] == [
        (start, by_hour[start]) for start in (first + timedelta(hours=i) for i in range(24))
    ]
    first = NOW.replace(hour=0, minute=0) - timedelta(days=29)
    assert [(day.start, day.total_bytes) for day in found.days] == [
        (start, by_day[start]) for start in (first + timedelta(days=i) for i in range(30))
    ]
    assert sum(day.sessions for day in found.days) == sum(record.timestamp >= first for record in records)


def test_the_last_day_by_reason_account_waiting_and_duration(records: list[SessionRecord]) -> None:
    found = figures.figures(NOW)
    first = NOW.replace(minute=0) - timedelta(hours=23)
    day = [record for record in records if record.timestamp >= first]
    assert dict(found.reasons) == Counter(record.reason for record in day)
    assert found.sessions == len(day) == sum(found.durations)
    assert sum(found.waiting) == sum(record.paired_at is not None for record in day)
    assert found.durations[0] == sum(record.duration_seconds < 10 for record in day)
    assert found.durations[3] == sum(300 <= record.duration_seconds < 900 for record in day)
    by_account: dict[Any, int] = defaultdict(int)
    for record in day:
        by_account[record.account_id] += record.total_bytes
    assert [(account, total) for account, _, total in found.accounts] == sorted(
        by_account.items(), key=lambda item: (-item[1], item[0] or "")
    )[: figures.TOP_ACCOUNTS]


def test_what_is_live_is_counted_apart(database: Database) -> None:
    rows.write(
        [
            live(1, legs=(leg(11),)),
            live(2, paired_at=NOW, bytes_client_to_server=7, legs=(leg(21), leg(22, role="server"))),
            ended(3, legs=(leg(31, left_at=NOW),)),
        ],
        "default",
    )
    found = figures.live()
    assert (found.sessions, found.waiting, found.paired, found.legs, found.total_bytes) == (2, 1, 1, 3, 7)


def test_a_day_that_is_over_is_read_once(
    records: list[SessionRecord], django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(figures.DAYS):
        first = figures.days(NOW)
    with django_assert_num_queries(1):
        assert figures.days(NOW) == first


def test_an_empty_database_has_figures_too(database: Database) -> None:
    found = figures.figures(NOW)
    assert (found.sessions, found.total_bytes, found.reasons, found.accounts) == (0, 0, (), ())
    chart = charts.periods(found.hours, "%H", "%H", 6)
    assert {column.up for column in chart.columns} == {0.0}


def test_totals_of_accounts_cover_the_window_and_no_more(records: list[SessionRecord]) -> None:
    start, end = NOW - timedelta(days=20), NOW - timedelta(days=10)
    expected: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    for record in records:
        if start <= record.timestamp < end:
            expected[record.account_id][0] += 1
            expected[record.account_id][1] += record.total_bytes
    found = {row["account_id"]: [row["sessions"], row["bytes"]] for row in figures.account_totals(start, end)}
    assert found == expected
    name = next(name for name in expected if name)
    assert {row["account_id"] for row in figures.account_totals(start, end, name[:5])} == {
        account for account in expected if account and account.startswith(name[:5])
    }


def test_an_axis_has_room_for_the_highest_and_reads_well() -> None:
    for most in (0, 1, 5000, 10**6, 3 * 2**30, 10**15, 2**62):
        top = charts.scale(most)
        assert top >= most
        assert top <= max(4096, 2.6 * most)
        assert human_bytes(top // 4).split(" ")[0].endswith(".0")
