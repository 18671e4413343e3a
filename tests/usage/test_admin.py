"""The admin shows every record and changes none, with a fixed number of queries."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client, override_settings

from relay.admin import charts
from relay.ledger.corrections import correct
from relay.ledger.writing import rows
from relay.models import RelayLeg, RelaySession, UsageExport
from relay.rules.units import human_bytes, human_duration
from tests.databases import Database
from tests.usage.samples import START, ended, leg, live, uuid

LIST = "/admin/relay/relaysession/"


@pytest.fixture
def browser(database: Database) -> Iterator[Client]:
    """Support: may view, and is not asked to change anything."""
    user = User.objects.create_user("support", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_relaysession", "view_relayleg"]))
    client = Client()
    client.force_login(user)
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        yield client


@pytest.fixture
def superuser(browser: Client) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def fill(count: int = 3) -> None:
    rows.write(
        [
            ended(
                number,
                started_at=START + timedelta(minutes=number),
                account_id=f"account-{number}",
                bytes_client_to_server=1536 * 1024,
                legs=(
                    leg(number * 10 + 1, subject=f"anna-{number}", bytes_received=2000),
                    leg(number * 10 + 2, role="server", subject=f"bob-{number}", bytes_received=1536 * 1024),
                ),
            )
            for number in range(1, count + 1)
        ]
        + [live(100, started_at=START + timedelta(days=40)), live(101, paired_at=START)],
        "default",
    )


def shown(browser: Client, query: str = "") -> list[str]:
    response = browser.get(LIST + query)
    assert response.status_code == 200
    return [session.session_id for session in response.context["cl"].result_list]


def test_the_list_shows_the_newest_first_in_human_units(browser: Client) -> None:
    fill()
    assert shown(browser) == ["session-100", "session-3", "session-2", "session-1", "session-101"]
    page = browser.get(LIST).content.decode()
    for text in ("1.5 MiB", "2.0 KiB", "0.3 s", "peer_left", "account-2", "waiting", "paired", "ended"):
        assert text in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?state=live", ["session-100", "session-101"]),
        ("?state=ended", ["session-3", "session-2", "session-1"]),
        ("?account=account-2", ["session-2"]),
        ("?account=account", []),
        ("?reason=node_lost", []),
        ("?state=waiting", ["session-100"]),
        ("?state=paired&reason=", ["session-101"]),
        ("?reason=peer_left&account=account-1", ["session-1"]),
        ("?started_from=2026-11-04", ["session-100"]),
        (
            "?started_from=2026-11-03&started_to=2026-11-03",
            ["session-3", "session-2", "session-1", "session-101"],
        ),
        ("?q=session-1", ["session-100", "session-1", "session-101"]),
        ("?q=account-3", ["session-3"]),
        ("?q=bob", ["session-3", "session-2", "session-1"]),
        ("?q=bob-2&state=ended", ["session-2"]),
        (f"?q={uuid(3)}", ["session-3"]),
        ("?q=%25", []),
        ("?q=ob-2", []),
    ],
)
def test_sessions_are_found_by_state_account_reason_date_id_and_subject(
    browser: Client, query: str, found: list[str]
) -> None:
    fill()
    assert shown(browser, query) == found


def test_typing_an_account_keeps_the_other_filters(browser: Client) -> None:
    fill()
    page = browser.get(LIST + "?state=ended&q=session&account=account-1").content.decode()
    form = page[page.index('id="filter-form"') :]
    form = form[: form.index("</form>")]
    assert '<option value="ended" selected>' in form
    assert re.search(r'type="hidden" name="q" value="session"', form)
    assert 'name="account" value="account-1"' in form
    assert form.count("account-1") == 1, form


def test_a_session_is_shown_with_both_legs_and_no_way_to_change_it(superuser: Client) -> None:
    fill()
    page = superuser.get(f"{LIST}{uuid(2)}/change/").content.decode()
    for text in ("session-2", "anna-2", "bob-2", "1.5 MiB", str(uuid(2))):
        assert text in page
    assert 'type="submit" value="Save' not in page
    assert "deletelink" not in page


def test_not_even_a_superuser_adds_changes_or_deletes_a_record(superuser: Client) -> None:
    fill()
    before = (
        list(RelaySession.objects.order_by("pk").values()),
        list(RelayLeg.objects.order_by("pk").values()),
    )
    assert superuser.get(f"{LIST}add/").status_code == 403
    assert superuser.post(f"{LIST}add/", {"session_id": "x"}).status_code == 403
    assert superuser.post(f"{LIST}{uuid(1)}/change/", {"session_id": "x"}).status_code == 403
    assert superuser.post(f"{LIST}{uuid(1)}/delete/", {"post": "yes"}).status_code == 403
    selected = {"action": "delete_selected", "_selected_action": str(uuid(1)), "post": "yes"}
    superuser.post(LIST, selected)
    after = list(RelaySession.objects.order_by("pk").values()), list(RelayLeg.objects.order_by("pk").values())
    assert before == after


def test_who_may_not_view_sees_nothing(browser: Client) -> None:
    client = Client()
    client.force_login(User.objects.create_user("other", is_staff=True))
    assert client.get(LIST).status_code == 403


def test_more_rows_need_no_more_queries(browser: Client, django_assert_num_queries: Any) -> None:
    fill(2)
    # Login session, user and its permissions; the count, the rows and their legs.
    with django_assert_num_queries(7) as few:
        shown(browser)
    rows.write([ended(number + 1000, legs=(leg(number + 9000),)) for number in range(45)], "default")
    with django_assert_num_queries(len(few)):
        assert len(shown(browser)) == 49
    browser.get(f"{LIST}{uuid(1)}/change/")  # once per process, Django looks up the content type
    for number, legs in ((1, 2), (5000, 30)):
        rows.write([ended(number, legs=tuple(leg(number * 10 + i) for i in range(1, legs + 1)))], "default")
        with django_assert_num_queries(6):
            assert browser.get(f"{LIST}{uuid(number)}/change/").status_code == 200


def test_bytes_and_durations_read_well() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 1536 * 1024, 1024**4, 2**62)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1.0 TiB", "4096.0 PiB"),
    ]
    assert human_bytes(1024**2 - 1) == "1.0 MiB"
    assert [human_duration(s) for s in (0, 59.94, 59.96, 125, 3599.7, 86_400)] == [
        *("0.0 s", "59.9 s", "1 min 00 s", "2 min 05 s", "1 h 00 min", "24 h 00 min"),
    ]


def test_exports_are_shown_and_not_changed(superuser: Client, tmp_path: Path) -> None:
    fill()
    output = str(tmp_path / "usage.csv")
    call_command("export_usage", "--new", "--destination", "billing", "--output", output)
    made = UsageExport.objects.get()
    listed = superuser.get("/admin/relay/usageexport/").content.decode()
    assert "billing" in listed
    assert superuser.get(f"/admin/relay/usageexport/?q={made.digest}").content.decode().count("billing") > 0
    detail = f"/admin/relay/usageexport/{made.pk}/change/"
    assert made.digest in superuser.get(detail).content.decode()
    for path in (detail, "/admin/relay/usageexport/add/", detail.replace("change", "delete")):
        assert superuser.post(path, {"destination": "other"}).status_code == 403
    assert UsageExport.objects.get().destination == "billing"


def test_a_correction_says_what_it_corrects_and_why(superuser: Client) -> None:
    rows.write([ended(1)], "default")
    correction = correct(uuid(1), {"bytes_client_to_server": 1}, "counted twice")
    assert correction is not None
    page = superuser.get(f"/admin/relay/relaysession/{correction.pk}/change/").content.decode()
    assert "counted twice" in page
    original = superuser.get(f"/admin/relay/relaysession/{uuid(1)}/change/").content.decode()
    assert "counted twice" not in original


def test_a_sessions_traffic_is_a_chart_whose_columns_sum_up_to_it(superuser: Client) -> None:
    points = ((0, 0, 0), (1000, 300, 0), (3000, 300, 400), (4000, 700, 400))
    record = ended(1, waiting_ms=0, paired_ms=4000, traffic=points, bytes_client_to_server=700)
    rows.write(
        [replace(record, bytes_server_to_client=400), ended(2, traffic=((300, 1002, 2000),))], "default"
    )
    chart = charts.traffic(RelaySession.objects.get(pk=uuid(1)))
    assert chart is not None
    periods = [column.period for column in chart.columns]
    assert [period.bytes_client_to_server for period in periods] == [300, 0, 0, 400]
    assert [period.bytes_server_to_client for period in periods] == [0, 200, 200, 0]
    assert "Traffic</h2>" in superuser.get(f"/admin/relay/relaysession/{uuid(1)}/change/").content.decode()
    assert charts.traffic(RelaySession.objects.get(pk=uuid(2))) is None
    assert (
        "Traffic</h2>" not in superuser.get(f"/admin/relay/relaysession/{uuid(2)}/change/").content.decode()
    )
