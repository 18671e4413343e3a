"""Bounds of the dashboard's figures, charts, filters and months: what belongs to which."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.http import QueryDict
from django.test import Client, override_settings

from relay.admin import accounts, charts, dashboard, operator
from relay.admin.timeline import recorded_at, timeline
from relay.ledger import corrections, figures
from relay.ledger.writing import rows
from relay.models import RelaySession
from relay.rules.units import human_bytes, human_duration, human_moment
from tests.databases import Database
from tests.usage.samples import START, ended, leg, live, uuid

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

LIST = "/admin/relay/relaysession/"
NOW = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)
MS = timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def browser(*permissions: str) -> Client:
    user = User.objects.create_user("-".join(permissions) or "nobody", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def _test_host() -> Iterator[None]:
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        yield


def test_an_hour_and_a_day_hold_their_first_moment_and_not_their_last(database: Database) -> None:
    hour, day = NOW.replace(minute=0), NOW.replace(hour=0, minute=0)
    moments = [hour - timedelta(hours=23) - MS, hour - timedelta(hours=23), hour - MS, hour, day - MS, day]
    rows.write([ended(n, timestamp=moment) for n, moment in enumerate(moments)], "default")
    found = figures.figures(NOW)
    by_hour = {period.start: period.sessions for period in found.hours if period.sessions}
    assert by_hour == {
        hour - timedelta(hours=23): 1,
        hour - timedelta(hours=1): 1,
        hour: 1,
        day - timedelta(hours=1): 1,
        day: 1,
    }
    by_day = {period.start: period.sessions for period in found.days if period.sessions}
    assert by_day == {day - timedelta(days=1): 3, day: 3}


def test_a_day_is_one_of_utc_whoever_asks(database: Database) -> None:
    """East of Greenwich the next day has begun already."""
    late = datetime(2026, 11, 21, 2, tzinfo=timezone(timedelta(hours=10)))
    assert figures.figures(late).days[-1].start == datetime(2026, 11, 20, tzinfo=UTC)
    assert figures.figures(late).at.tzinfo is UTC


def test_a_bin_holds_its_lower_bound_and_not_its_upper(database: Database) -> None:
    durations = (9_999, 10_000, 59_999, 60_000, 14_399_999, 14_400_000)
    rows.write(
        [
            ended(n, timestamp=NOW, paired_at=START, waiting_ms=1000, paired_ms=ms - 1000)
            for n, ms in enumerate(durations)
        ],
        "default",
    )
    found = figures.figures(NOW)
    assert found.durations == (1, 2, 1, 0, 0, 1, 1)
    assert found.waiting == (0, 6, 0, 0, 0, 0, 0)


def test_who_never_met_a_peer_counts_in_no_waiting_time(database: Database) -> None:
    rows.write([ended(1, timestamp=NOW), ended(2, timestamp=NOW, paired_at=START)], "default")
    assert sum(figures.figures(NOW).waiting) == 1


def test_a_correction_changes_bytes_and_is_no_session(database: Database) -> None:
    rows.write([ended(1, paired_at=START)], "default")
    made = corrections.correct(uuid(1), {"bytes_client_to_server": 1}, "a test")
    assert made is not None
    RelaySession.objects.update(timestamp=NOW)
    found = figures.figures(NOW)
    assert (found.sessions, found.total_bytes) == (1, 2001)
    assert (sum(found.waiting), sum(found.durations), found.reasons) == (1, 1, (("peer_left", 1),))
    assert found.accounts == (("acme", 1, 2001),)
    assert [row["sessions"] for row in figures.account_totals(NOW, NOW + MS)] == [1]


def test_the_sums_of_a_day_are_believed_for_the_longer_the_longer_it_is_over(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool may still bring something late, and that has to be seen one day."""
    kept: list[float] = []
    monkeypatch.setattr(figures.cache, "set", lambda key, value, seconds: kept.append(seconds))
    figures.days(NOW)
    assert kept == [600 * back for back in range(29, 0, -1)]


def test_totals_of_accounts_are_from_the_first_moment_of_a_month_to_that_of_the_next(
    database: Database,
) -> None:
    first, following = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    for n, moment in enumerate((first - MS, first, following - MS, following)):
        rows.write([ended(n, timestamp=moment, account_id=f"account-{n}")], "default")
    shown = accounts.context(QueryDict("month=2026-11"), datetime(2027, 1, 15, tzinfo=UTC))
    assert sorted(row["account_id"] for row in shown["accounts"]) == ["account-1", "account-2"]
    assert [month for month, _ in shown["months"]][:3] == ["2027-01", "2026-12", "2026-11"]
    assert "started_from=2026-11-01&started_to=2026-11-30" in shown["accounts"][0]["link"]
    assert accounts.context(QueryDict("month=1999-01"), NOW)["month"] == "2026-11"


def test_the_accounts_that_are_not_shown_are_said_to_be_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "SHOWN", 2)
    rows.write([ended(n, timestamp=NOW, account_id=f"account-{n}") for n in range(3)], "default")
    shown = accounts.context(QueryDict(), NOW)
    assert ([row["account_id"] for row in shown["accounts"]], shown["more"]) == (
        ["account-2", "account-1"],
        True,
    )
    monkeypatch.setattr(accounts, "SHOWN", 3)
    assert accounts.context(QueryDict(), NOW)["more"] is False


@pytest.mark.usefixtures("_test_host")
def test_a_list_from_one_day_to_another_has_both_of_them_whole(database: Database) -> None:
    day = datetime(2026, 11, 3, tzinfo=UTC)
    moments = [day - MS, day, day + timedelta(days=1) - MS, day + timedelta(days=1)]
    rows.write([ended(n, started_at=moment) for n, moment in enumerate(moments)], "default")
    page = browser("view_relaysession").get(f"{LIST}?started_from=2026-11-03&started_to=2026-11-03")
    assert [session.session_id for session in page.context["cl"].result_list] == ["session-2", "session-1"]


@pytest.mark.usefixtures("_test_host")
def test_an_export_of_as_many_as_are_allowed_is_made(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relay import conf

    changed = conf.current().model_copy(update={"admin_export_rows": 2})
    monkeypatch.setattr(conf, "current", lambda: changed)
    client = browser("view_relaysession")
    rows.write([ended(1), ended(2), live(3)], "default")
    assert client.get(f"{LIST}export/csv/").status_code == 200
    rows.write([ended(4)], "default")
    assert client.get(f"{LIST}export/csv/").status_code == 302


@pytest.mark.usefixtures("_test_host")
def test_only_who_may_close_has_the_button_and_only_of_a_live_session(database: Database) -> None:
    rows.write([live(1), ended(2)], "default")
    for client, sees in (
        (browser("view_relaysession"), False),
        (browser("view_relaysession", "close_session"), True),
    ):
        assert ("Close session" in client.get(f"{LIST}{uuid(1)}/figures/").content.decode()) is sees
        assert "Close session" not in client.get(f"{LIST}{uuid(2)}/figures/").content.decode()


@pytest.mark.usefixtures("_test_host")
def test_sessions_are_closed_only_by_who_may_and_after_being_asked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(operator, "close", told.extend)
    monkeypatch.setattr(operator, "SEEN_SECONDS", 0)
    rows.write([live(1), live(2), ended(3)], "default")
    form = {"action": "close_sessions", "_selected_action": [str(uuid(n)) for n in (1, 3)]}
    browser("view_relaysession").post(LIST, {**form, "confirmed": "yes"})
    assert told == []
    client = browser("view_relaysession", "close_session")
    client.post(LIST, form)
    client.post(LIST, {**form, "confirmed": "no"})
    assert told == []
    client.post(LIST, {**form, "confirmed": "yes"})
    assert told == [uuid(1)]


def test_waiting_for_closed_sessions_ends_when_their_records_show_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write([live(1), live(2)], "default")
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 0.5:
            rows.write([ended(1)], "default")

    monkeypatch.setattr(operator.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(operator.time, "sleep", sleep)
    assert operator.still_live([uuid(1)]) == 0
    assert now[0] < operator.SEEN_SECONDS
    assert operator.still_live([uuid(1), uuid(2)]) == 1
    assert now[0] >= operator.SEEN_SECONDS


def test_a_session_is_as_of_its_end_or_its_last_record(database: Database) -> None:
    rows.write([live(1, waiting_ms=1000, paired_ms=4000, paired_at=START), ended(2)], "default")
    found = {row.session_id: recorded_at(row) for row in RelaySession.objects.all()}
    assert found == {
        "session-1": START + timedelta(seconds=5),
        "session-2": START + timedelta(seconds=2),
    }


def test_a_timeline_says_how_each_leg_was_told_and_of_a_lost_one_that_it_dropped(database: Database) -> None:
    legs = (
        leg(1, left_at=START, close_code=4410, close_reason="peer_lost: gone"),
        leg(2, role="server", left_at=START),
        leg(3),
    )
    rows.write([ended(1, legs=legs)], "default")
    session = RelaySession.objects.get()
    left = [
        event
        for event in timeline(session, list(session.legs.order_by("pk")))
        if event.title.endswith(" left")
    ]
    assert [event.text for event in left] == [
        "with 4410 peer_lost: gone",
        "its connection dropped, or its node died",
    ]


def test_a_leg_that_left_before_the_end_did_so_before_it_in_the_timeline(database: Database) -> None:
    legs = (leg(1, left_at=START + MS), leg(2, role="server", joined_at=START + 2 * MS))
    rows.write([ended(1, paired_at=START, legs=legs)], "default")
    session = RelaySession.objects.get()
    titles = [
        event.title.partition(" ")[0] for event in timeline(session, list(session.legs.order_by("-pk")))
    ]
    assert titles == ["Client", "Paired", "Client", "Server", "Relayed", "Closed:"]


def test_bars_are_parts_of_the_axis_and_of_the_longest(database: Database) -> None:
    periods = [figures.Period(NOW, 1, 1024, 3072), figures.Period(NOW, 1, 0, 0)]
    chart = charts.periods(periods, "%d", "%d", 1)
    assert [(column.up, column.down) for column in chart.columns] == [(25, 75), (0, 0)]
    assert [(mark.height, mark.label) for mark in chart.marks] == [
        *((100, "4 KiB"), (75, "3 KiB"), (50, "2 KiB"), (25, "1 KiB"))
    ]
    found = charts.shares([("a", 40, "40", "", ""), ("b", 10, "10", "", "")])
    assert [share.width for share in found] == [100, 25]


def test_figures_serve_everybody_who_looks_for_a_few_seconds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "health", list)
    first = dashboard.context(NOW)["figures"]
    rows.write([ended(1, timestamp=NOW)], "default")
    assert dashboard.context(NOW)["figures"] == first
    cache.clear()
    assert dashboard.context(NOW)["figures"].sessions == 1


def test_each_unit_begins_where_it_would_show_as_one(database: Database) -> None:
    assert [human_bytes(n) for n in (1023, 1024, -2048, 1024**2 - 52, 1024**2 - 51)] == [
        *("1023 B", "1.0 KiB", "-2.0 KiB", "1023.9 KiB", "1.0 MiB")
    ]
    assert [human_duration(s) for s in (59.94, 59.95, 3599, 3600, 3660)] == [
        *("59.9 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "1 h 01 min")
    ]
    berlin = datetime(2026, 11, 3, 0, 30, 5, tzinfo=timezone(timedelta(hours=1)))
    assert human_moment(berlin) == "2026-11-02 23:30:05"


def test_today_is_read_at_each_look(database: Database) -> None:
    assert figures.days(NOW)[-1].sessions == 0
    rows.write([ended(1, timestamp=NOW)], "default")
    assert figures.days(NOW)[-1].sessions == 1
