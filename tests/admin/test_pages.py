"""The admin's further pages: who may see them, and what the export holds."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import Client, override_settings

from relay import conf
from relay.admin import operator
from relay.ledger.writing import rows
from relay.management import generated
from tests.databases import Database
from tests.usage.samples import START, ended, leg, live, uuid

LIST = "/admin/relay/relaysession/"
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def support(database: Database) -> Iterator[Client]:
    """May view sessions and legs, and nothing else."""
    with override_settings(ALLOWED_HOSTS=["testserver"]):
        yield who_may("view_relaysession", "view_relayleg")


def who_may(*permissions: str) -> Client:
    user = User.objects.create_user("-".join(permissions) or "nobody", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def printed(**options: Any) -> str:
    out = io.StringIO()
    call_command("export_usage", stdout=out, stderr=io.StringIO(), **options)
    return out.getvalue()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_export_of_a_filter_is_what_the_command_writes(support: Client, form: str) -> None:
    records = list(generated.sessions(60, 5, NOW, seed=1))
    rows.write([*records, live(1)], "default")
    account = next(record.account_id for record in records if record.account_id)
    options = {"start": "2000-01-01", "end": "2100-01-01", "format": form}
    for query, narrowed in (("", {}), (f"?account={account}", {"account": account})):
        answer = support.get(f"{LIST}export/{form}/{query}")
        assert answer.status_code == 200
        assert answer.content.decode() == printed(**options, **narrowed)
        assert f".{form}" in answer["Content-Disposition"]
    assert answer.content


def test_an_export_goes_by_search_and_state_as_the_list_does(support: Client) -> None:
    rows.write([ended(n, legs=(leg(n * 10, subject=f"anna-{n}"),)) for n in (1, 2, 3)] + [live(4)], "default")
    found = support.get(f"{LIST}export/csv/?q=anna-2").content.decode().splitlines()
    assert [line.split(",")[0] for line in found] == ["session_id", "session-2"]
    assert len(support.get(f"{LIST}export/csv/?state=live").content.splitlines()) == 1
    assert support.get(f"{LIST}export/xls/").status_code == 404


def test_an_export_of_too_many_says_what_to_do(support: Client, settings: Any) -> None:
    rows.write([ended(n) for n in (1, 2, 3)], "default")
    settings.RELAY = {"admin_export_rows": 2}
    conf.current.cache_clear()
    try:
        answer = support.get(f"{LIST}export/csv/?state=ended", follow=True)
    finally:
        conf.current.cache_clear()
    assert answer.redirect_chain == [(f"{LIST}?state=ended", 302)]
    assert "More than 2 sessions" in answer.content.decode()


@pytest.mark.parametrize(
    "page", ["", "export/csv/", "figures/", "accounts/", f"{uuid(1)}/change/", f"{uuid(1)}/figures/"]
)
def test_who_may_not_view_sessions_gets_none_of_it(support: Client, page: str) -> None:
    rows.write([ended(1)], "default")
    assert who_may().get(LIST + page).status_code == 403
    assert Client().get(LIST + page).status_code == 302


def test_participants_are_for_those_who_may_see_legs(support: Client) -> None:
    rows.write([ended(1, legs=(leg(10, subject="anna", address="192.0.2.1"),))], "default")
    for client, sees in ((support, True), (who_may("view_relaysession"), False)):
        for page in (LIST, f"{LIST}{uuid(1)}/change/"):
            assert ("anna" in client.get(page).content.decode()) is sees


def test_a_page_tells_what_happened_in_order(support: Client) -> None:
    rows.write(
        [
            ended(
                1,
                reason="stalled",
                paired_at=START + timedelta(seconds=2),
                timestamp=START + timedelta(seconds=3),
                waiting_ms=2000,
                legs=(
                    leg(10, left_at=START + timedelta(seconds=3), close_code=4413),
                    leg(11, role="server", joined_at=START + timedelta(seconds=2)),
                ),
            )
        ],
        "default",
    )
    page = support.get(f"{LIST}{uuid(1)}/change/").content.decode()
    page = page[page.index("relay-timeline") :]
    steps = [
        "Client joined",
        "Server joined",
        "Paired",
        "after 2.0 s",
        "Relayed",
        "in 3 frames",
        "Client left",
    ]
    places = [page.index(step) for step in [*steps, "with 4413", "Closed: stalled", "took nothing"]]
    assert places == sorted(places)


def test_a_live_session_says_as_of_when_its_figures_are(support: Client) -> None:
    rows.write([live(1, waiting_ms=1000, paired_ms=4000, paired_at=START)], "default")
    page = support.get(f"{LIST}{uuid(1)}/change/").content.decode()
    assert "Live, paired" in page
    assert "Figures as of" in page
    assert "2026-11-03 12:00:05 UTC" in page
    assert "live, as of 12:00:05" in support.get(LIST).content.decode()


def test_the_page_of_a_live_session_asks_for_its_figures_again(support: Client) -> None:
    rows.write([live(1)], "default")
    figures = f"{LIST}{uuid(1)}/figures/"
    assert f'data-refresh="{figures}"' in support.get(f"{LIST}{uuid(1)}/change/").content.decode()
    assert "Live, waiting" in support.get(figures).content.decode()
    rows.write([ended(1)], "default")
    page = support.get(figures).content.decode()
    assert "Ended" in page
    assert "data-final" in page
    assert "data-refresh" not in support.get(f"{LIST}{uuid(1)}/change/").content.decode()


def test_support_has_no_way_to_close(support: Client) -> None:
    rows.write([live(1)], "default")
    assert "Close session" not in support.get(f"{LIST}{uuid(1)}/change/").content.decode()
    assert "close_sessions" not in support.get(LIST).content.decode()
    answer = support.post(
        LIST, {"action": "close_sessions", "_selected_action": str(uuid(1)), "confirmed": "yes"}
    )
    assert "Closed" not in answer.content.decode()


def test_nothing_is_closed_that_is_not_live(support: Client) -> None:
    rows.write([ended(1)], "default")
    client = who_may("view_relaysession", "close_session")
    answer = client.post(
        LIST, {"action": "close_sessions", "_selected_action": str(uuid(1)), "confirmed": "yes"}, follow=True
    )
    assert "None of these sessions is live" in answer.content.decode()


def test_a_session_that_nobody_closes_is_told_of(support: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "SEEN_SECONDS", 0)
    rows.write([live(1), ended(2)], "default")  # no leg of the first is anywhere
    client = who_may("view_relaysession", "close_session")
    form = {"action": "close_sessions", "_selected_action": [str(uuid(1)), str(uuid(2))]}
    asked = client.post(LIST, form).content.decode()
    assert "Close this session?" in asked
    assert "1 of those chosen ended before" in asked
    answer = client.post(LIST, {**form, "confirmed": "yes"}, follow=True).content.decode()
    assert "1 told to close, and not recorded as ended yet" in answer
    assert LogEntry.objects.get().object_id == str(uuid(1))


def test_filters_left_empty_are_not_in_use(support: Client) -> None:
    rows.write([ended(1)], "default")
    assert "(in use)" not in support.get(f"{LIST}?state=&reason=&account=").content.decode()
    assert "(in use)" in support.get(f"{LIST}?state=ended&reason=&account=").content.decode()


def test_accounts_are_totalled_by_month(support: Client) -> None:
    rows.write([ended(n, account_id=f"acme-{n % 2}", timestamp=NOW) for n in range(1, 6)], "default")
    page = support.get(f"{LIST}accounts/").content.decode()
    assert page.index("acme-1") < page.index("acme-0")
    only = support.get(f"{LIST}accounts/?q=acme-0").content.decode()
    assert "acme-1" not in only
    before = (NOW.replace(day=1) - timedelta(days=1)).strftime("%Y-%m")
    assert "No session ended." in support.get(f"{LIST}accounts/?month={before}").content.decode()


@pytest.mark.parametrize("query", ["?started_from=soon", "?started_to=2026-13-01"])
def test_a_malformed_date_shows_the_whole_list(support: Client, query: str) -> None:
    assert support.get(LIST + query, follow=True).redirect_chain == [(f"{LIST}?e=1", 302)]


def test_the_side_bar_leads_to_what_somebody_may_see(support: Client) -> None:
    assert f'href="{LIST}accounts/"' in (page := support.get(LIST).content.decode())
    assert "/admin/relay/usageexport/" not in page
    everything = who_may("view_relaysession", "view_relayleg", "view_usageexport")
    assert 'href="/admin/relay/usageexport/"' in everything.get(LIST).content.decode()
    assert everything.get("/admin/relay/usageexport/").status_code == 200


def test_all_assets_come_from_the_server_itself(support: Client) -> None:
    rows.write([ended(1)], "default")
    for page in ("/admin/login/", LIST, f"{LIST}{uuid(1)}/change/", f"{LIST}accounts/"):
        html = (Client() if "login" in page else support).get(page).content.decode()
        for part in ('src="', 'href="'):
            for link in html.split(part)[1:]:
                assert not link.startswith(("http:", "https:", "//")), link[:80]
