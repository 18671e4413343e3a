"""A person's way through the admin, in a real browser against a running relay: what works, how it looks.

Leaves pictures in `var/screenshots`. No message of the browser's console, no failed request and no breach of
axe-core's rules is let pass.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, TimeoutError, expect, sync_playwright
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.records import check_session, ended
from tests.relays import ROOT, Relay, running
from tests.tokens import token

pytestmark = pytest.mark.system

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PICTURES = ROOT / "var" / "screenshots"
LIST = "/admin/relay/relaysession/"
SIZES = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}
WAIT_MS = 20_000
"""Deadline for what has to appear; never how long it takes."""

PASSWORD = "a password for tests"

CLIPPED = """[...document.querySelectorAll("td, th, dd, h1, h2")]
    .filter(cell => cell.scrollHeight > cell.clientHeight + 2 && getComputedStyle(cell).overflow === "hidden")
    .map(cell => cell.outerHTML.slice(0, 200))"""
"""What has more to show than it has room for."""

MAKE_USER = f"""
from django.contrib.auth.models import User
User.objects.create_superuser("operator", "operator@example.com", {PASSWORD!r})
"""


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A relay with a month of made-up usage and one user."""
    environ = {"RELAY_CHECKPOINT_SECONDS": "0.5"}
    with running("daphne spliced", tmp_path_factory.mktemp("browser"), environ) as relay:
        relay.manage("generate_usage", "--sessions", "6000")
        relay.manage("shell", "-v0", "-c", MAKE_USER)
        yield relay


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page with its troubles, which have to be none at the end."""

    page: Page
    relay: Relay
    troubles: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        self.page.goto(self.relay.http_url + path)
        self.page.wait_for_load_state("networkidle")

    def log_in(self) -> None:
        self.go("/admin/")
        self.page.get_by_label("Username").fill("operator")
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("heading", name="Live sessions")).to_be_visible()


@contextmanager
def visiting(
    chromium: Browser, relay: Relay, size: str = "desktop", scheme: str = "light"
) -> Iterator[Visit]:
    context: BrowserContext = chromium.new_context(
        viewport=SIZES[size], color_scheme=scheme, base_url=relay.http_url
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    visit = Visit(page, relay)
    page.on("console", lambda said: visit.troubles.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: visit.troubles.append(f"error: {error}"))
    page.on(
        "requestfailed",
        lambda request: (
            None
            if request.failure == "net::ERR_ABORTED"  # the page was left before it had all
            else visit.troubles.append(f"failed: {request.url}")
        ),
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((relay.http_url, "data:", "blob:"))
            else visit.troubles.append(f"elsewhere: {request.url}")
        ),
    )
    try:
        yield visit
    finally:
        context.close()
    assert not visit.troubles


@contextmanager
def live_pair(relay: Relay, session_id: str) -> Iterator[tuple[Any, Any]]:
    """Two real clients in a session."""
    url = f"{relay.url}/relay/{session_id}"

    def leg(subject: str, account: str) -> Any:
        headers = {"Authorization": f"Bearer {token(sub=subject, account_id=account)}"}
        return connect(url, additional_headers=headers, compression=None)

    with leg("phone-live", "lem-demo") as client, leg("hub-live", "lem-demo") as server:
        client.send(b"\0" * 300_000)
        assert len(server.recv(timeout=20)) == 300_000
        yield client, server


CLOSED = (4499, "closed_by_operator: an operator closed the session")


def check_books(relay: Relay, session_id: str, received: dict[str, int], close: tuple[int, str]) -> None:
    """What the clients `received` and the close frame that both were sent are in all records of a session."""
    row = ended(relay, session_id)
    lines = [line for line in relay.lines("session_closed") if line["session_id"] == session_id]
    (line,) = lines
    frames = {name.replace("bytes", "frames"): int(nbytes > 0) for name, nbytes in received.items()}
    check_session(row, line, received | frames, closes={"client": close, "server": close})


def test_from_the_login_to_a_closed_session(chromium: Browser, relay: Relay, session_id: str) -> None:
    with visiting(chromium, relay) as visit, live_pair(relay, session_id) as (client, server):
        page = visit.page
        visit.log_in()
        expect(page.get_by_text("1 paired, 0 waiting")).to_be_visible()

        page.get_by_role("link", name="Sessions").first.click()
        page.get_by_role("button", name="Filters").click()
        page.get_by_label("State").select_option("live")
        page.get_by_label("Account").fill("lem-demo")
        page.get_by_role("button", name="Apply Filters").click()
        rows = page.locator("#result_list tbody tr.data-row")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("phone-live")
        expect(rows).to_contain_text("293.0 KiB")

        rows.get_by_role("link", name=session_id).click()
        expect(page.get_by_role("heading", name="Live, paired")).to_be_visible()
        expect(page.get_by_text("Relayed so far 293.0 KiB")).to_be_visible()
        page.screenshot(path=PICTURES / "live.png")

        page.get_by_role("button", name="Close session…").click()
        expect(page.get_by_role("heading", name="Close this session?")).to_be_visible()
        page.screenshot(path=PICTURES / "closing.png")
        check_accessibility(page)
        page.get_by_role("button", name="Close it").click()
        expect(page.get_by_text("Closed 1 session.")).to_be_visible()
        for socket in (client, server):
            with pytest.raises(ConnectionClosed) as caught:
                socket.recv(timeout=20)
            assert caught.value.rcvd.code == 4499
            assert caught.value.rcvd.reason == CLOSED[1]
        check_books(
            relay, session_id, {"bytes_client_to_server": 300_000, "bytes_server_to_client": 0}, CLOSED
        )

        visit.go(f"{LIST}?q={session_id}")
        expect(rows).to_contain_text("closed_by_operator")
        page.get_by_role("link", name=session_id).click()
        page.get_by_role("link", name="History").click()
        expect(page.get_by_text("Closed by operator (4499).")).to_be_visible()


def test_the_export_of_a_filter_is_a_file(chromium: Browser, relay: Relay) -> None:
    with visiting(chromium, relay) as visit:
        visit.log_in()
        visit.go(f"{LIST}?reason=link_lost")
        shown = visit.page.locator("#result_list tbody tr.data-row").count()
        with visit.page.expect_download() as waited:
            visit.page.get_by_role("link", name="Export JSON Lines").click()
        lines = Path(waited.value.path()).read_text().splitlines()
        assert waited.value.suggested_filename.endswith(".jsonl")
        assert 1 < len(lines) == shown < 50
        assert {json.loads(line)["reason"] for line in lines} == {"link_lost"}


def test_the_dashboard_refreshes_by_itself_and_keeps_what_is_open(
    chromium: Browser, relay: Relay, session_id: str
) -> None:
    with visiting(chromium, relay) as visit:
        page = visit.page
        page.clock.install()
        visit.log_in()
        tile = page.get_by_role("region", name="Live sessions")
        self_refreshed(page, tile.get_by_text("0 paired, 0 waiting"))
        table = page.get_by_role("region", name="Relayed per hour, last day").first
        table.get_by_text("As a table").click()
        table.get_by_text("As a table").focus()
        with live_pair(relay, session_id):
            self_refreshed(page, tile.get_by_text("1 paired, 0 waiting"))
            expect(table.get_by_role("columnheader", name="To server")).to_be_visible()
            expect(table.get_by_text("As a table")).to_be_focused()


def test_the_page_of_a_live_session_refreshes_by_itself_until_its_end(
    chromium: Browser, relay: Relay, session_id: str
) -> None:
    with visiting(chromium, relay) as visit:
        page = visit.page
        page.clock.install()
        visit.log_in()
        with live_pair(relay, session_id) as (client, server):
            visit.go(LIST)
            link = page.locator("#result_list").get_by_role("link", name=session_id)
            reloaded_until(page, link)
            link.click()
            summary = page.get_by_role("region", name="Live, paired")
            expect(summary).to_be_visible()
            server.send(b"\0" * 700_000)
            assert len(client.recv(timeout=20)) == 700_000
            button = page.get_by_role("button", name="Close session…")
            button.focus()
            self_refreshed(page, summary.get_by_text("683.6 KiB"))
            expect(button).to_be_focused()
        counted = {"bytes_client_to_server": 300_000, "bytes_server_to_client": 700_000}
        check_books(relay, session_id, counted, (1000, ""))
        self_refreshed(page, page.get_by_role("region", name="Ended").get_by_text("peer_left"))
        expect(page.get_by_text("Duration in seconds")).to_be_visible()


def test_a_page_whose_user_is_signed_out_says_that_it_is_old(chromium: Browser, relay: Relay) -> None:
    with visiting(chromium, relay) as visit:
        page = visit.page
        page.clock.install()
        visit.log_in()
        notice = page.get_by_text("These figures are old")
        expect(notice).to_be_hidden()
        page.context.clear_cookies()
        with page.expect_response(f"**{LIST}figures/"):
            page.clock.run_for(10_000)
        expect(notice).to_be_visible()


def self_refreshed(page: Page, expected: Locator) -> None:
    """Let the page's clock go on until what it shows by itself is what is expected."""
    for _ in range(40):
        with suppress(TimeoutError):
            expected.first.wait_for(timeout=1000)
            return
        page.clock.run_for(10_000)
    raise AssertionError(f"it never showed {expected}")


def reloaded_until(page: Page, expected: Locator) -> None:
    """A record of what has just begun takes a moment."""
    for _ in range(40):
        if expected.count():
            return
        page.reload()
        page.wait_for_load_state("networkidle")
    raise AssertionError(f"it never showed {expected}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_each_page_looks_right_and_can_be_used_by_all(
    chromium: Browser, relay: Relay, session_id: str, size: str, scheme: str
) -> None:
    """What a program can see of it: no side-scrolling, one title, axe-core's rules. Pictures are for people.

    The rules are gone through once per scheme, as a phone has the same pages.
    """
    check = check_accessibility if size == "desktop" else lambda page: None
    with visiting(chromium, relay, size, scheme) as visit, live_pair(relay, session_id):
        page = visit.page
        visit.go("/admin/")
        check(page)
        visit.log_in()
        for name, path in (
            ("dashboard", "/admin/"),
            ("list", LIST),
            ("detail", ""),
            ("accounts", f"{LIST}accounts/"),
            ("exports", "/admin/relay/usageexport/"),
        ):
            if path:
                visit.go(path)
            else:
                page.locator("#result_list tbody tr.data-row a").nth(3).click()
                expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
            expect(page.locator("h1")).to_have_count(1)
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"], name
            assert page.evaluate(CLIPPED) == [], name
            page.screenshot(path=PICTURES / f"{name}-{scheme}-{size}.png", full_page=name == "dashboard")
            check(page)


def test_the_keyboard_alone_is_enough_to_filter_and_open(chromium: Browser, relay: Relay) -> None:
    with visiting(chromium, relay) as visit:
        page = visit.page
        visit.log_in()
        visit.go(LIST)
        reach(page, page.get_by_role("button", name="Filters"))
        page.keyboard.press("Enter")
        expect(page.get_by_label("State")).to_be_focused()
        reach(page, page.get_by_label("Close reason"))
        page.keyboard.type("expired")
        reach(page, page.get_by_role("button", name="Apply Filters"))
        page.keyboard.press("Enter")
        page.wait_for_url("**reason=expired**")
        reach(page, page.locator("#result_list tbody tr.data-row a").first)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Timeline")).to_be_visible()


def reach(page: Page, target: Locator) -> None:
    """Press Tab until `target` has the focus, and see that it shows it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            shown = "({ outlineStyle, boxShadow }) => outlineStyle !== 'none' || boxShadow !== 'none'"
            assert target.evaluate(f"element => ({shown})(getComputedStyle(element))")
            return
    raise AssertionError(f"no way to {target} by the keyboard")


def check_accessibility(page: Page) -> None:
    """axe-core's rules for WCAG 2 A and AA hold."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}})
    told = [
        f"{violation['id']}: {node['target']} {node['html'][:200]}"
        for violation in found.response["violations"]
        for node in violation["nodes"]
    ]
    assert not told, "\n".join(told)
