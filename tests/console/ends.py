"""Both ends of a session for the console's tests: a page with its troubles, and Python beside it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from playwright.sync_api import Browser, Page, expect

from relay.client.connection import RelayConnection
from relay.client.peers import Fingerprint
from tests.client.ends import bob
from tests.relays import Relay
from tests.tokens import token

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 320, "height": 640}}
"""A phone as narrow as a page has to fit on (WCAG 2.2, 1.4.10)."""
WAIT_MS = 15_000
"""Deadline for what has to appear; never how long it takes."""

T = TypeVar("T")
_threads = ThreadPoolExecutor()


class Visit:
    """A person at the console. What goes wrong in the page has to be nothing at the end."""

    def __init__(self, page: Page, relay: Relay) -> None:
        self.page = page
        self.relay = relay
        self.troubles: list[str] = []
        self.key = ""
        """The fingerprint of this browser's key, once the console is open."""
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda said: self.troubles.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.relay.http_url, "blob:")):
            self.troubles.append(f"elsewhere: {request.url}")

    def go(self, fragment: str = "") -> "Visit":
        """Open the console."""
        self.page.goto(f"{self.relay.http_url}/console/{fragment}")
        expect(self.page.locator("#page")).to_be_visible()
        self.key = self.page.locator("#own-fingerprint").inner_text()
        return self

    @property
    def words(self) -> str:
        """The words that are shown."""
        return "-".join(self.page.locator("#words li").all_inner_texts())

    @property
    def heard(self) -> list[str]:
        """What the peer said."""
        return self.page.locator("#lines .peer bdi").all_text_contents()

    def fill(self, session_id: str, *, key: str = "", verify: bool = False, **claims: Any) -> None:
        """Fill in a token for the session, and whom to accept."""
        claims = {"session_id": session_id, "sub": "page", **claims}
        self.page.locator("#token").fill(token(**claims))
        if key:
            self.page.get_by_label("Only the peer with this key").check()
            self.page.locator("#peer-key").fill(key)
        if verify:
            self.page.get_by_label("Compare words").check()

    def join(self, session_id: str, **options: Any) -> None:
        """Fill in and join."""
        self.fill(session_id, **options)
        self.page.get_by_role("button", name="Join").click()

    def shows(self, title: str, detail: str = "") -> None:
        """Wait until the page's state is that."""
        expect(self.page.locator("#state")).to_have_text(title)
        expect(self.page.locator("#detail")).to_contain_text(detail)

    def say(self, text: str) -> None:
        """Send a line."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def hears(self, text: str) -> None:
        """Wait until the peer said that."""
        expect(self.page.locator("#lines .peer bdi").filter(has_text=text)).to_be_visible()

    def has(self, name: str, state: str) -> None:
        """Wait until a file of that name says that it is there."""
        row = self.page.locator("#transfers li").filter(has=self.page.get_by_text(name, exact=True))
        expect(row.first).to_contain_text(state)

    def leave(self) -> None:
        """Leave the session."""
        self.page.get_by_role("button", name="Leave").click()


@contextlib.contextmanager
def visiting(
    chromium: Browser,
    relay: Relay,
    size: str = "desktop",
    scheme: str = "light",
    allowed: tuple[str, ...] = (),
    **options: Any,
) -> Iterator[Visit]:
    """A browser of its own with the console; `allowed` are troubles that belong to the test."""
    expect.set_options(timeout=WAIT_MS)
    context = chromium.new_context(viewport=SIZES[size], color_scheme=scheme, **options)
    try:
        visit = Visit(context.new_page(), relay)
        yield visit
    finally:
        context.close()
    troubles = [text for text in visit.troubles if not any(part in text for part in allowed)]
    assert not troubles


def meet(visit: Visit, session_id: str) -> RelayConnection:
    """Python's side of a session that the page joins next."""
    return bob(visit.relay.url, session_id, rule=Fingerprint(visit.key))


def beside(work: Callable[[], Awaitable[T]]) -> "Future[T]":
    """Run a coroutine in a thread, as Playwright has this one."""

    async def within() -> T:
        async with asyncio.timeout(WAIT_MS / 1000):
            return await work()

    return _threads.submit(lambda: asyncio.run(within()))


def entering(side: RelayConnection) -> "Future[BaseException | list[bytes]]":
    """What becomes of a Python side that only listens: what it got but probes, or why it got nothing."""

    async def listen() -> BaseException | list[bytes]:
        try:
            async with side as peer:
                await peer.end()
                return [message async for message in peer if not message.startswith(b"P")]
        except Exception as error:  # noqa: BLE001 - whatever it is is the outcome
            return error

    return beside(listen)
