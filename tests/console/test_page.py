"""The page as people meet it: by keyboard, on a phone, in the dark, with a hostile peer, in old browsers."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from relay.client.connection import Closed, RelayConnection
from relay.client.peers import Fingerprint
from tests.admin.test_browser import check_accessibility, reach
from tests.client.ends import OF_BOB, Tap, bob
from tests.client.test_command_line import Person, finish
from tests.console.ends import SIZES, Visit, beside, entering, meet, visiting
from tests.relays import ROOT, Relay, running
from tests.tokens import token

pytestmark = pytest.mark.system

PICTURES = ROOT / "var" / "screenshots"

SMALL = """[...document.querySelectorAll("button, .buttons a, summary, .choice, form > input, textarea")]
    .filter((control) => control.checkVisibility() && control.getBoundingClientRect().height < 24)
    .map((control) => control.outerHTML.slice(0, 200))"""
"""What is too small to be hit (WCAG 2.2, 2.5.8)."""

COVERED = """[...document.querySelectorAll("label[for]:not(.hidden)")]
    .filter((label) => label.checkVisibility() &&
        label.getBoundingClientRect().bottom > label.control.getBoundingClientRect().top)
    .map((label) => label.textContent)"""
"""Labels that their fields lie upon."""


def say(**values: Any) -> bytes:
    return b"J" + json.dumps(values).encode()


def offer(name: str | None, content: bytes) -> bytes:
    return say(name=name, size=len(content))


def digest(content: bytes) -> bytes:
    return say(sha256=hashlib.sha256(content).hexdigest())


async def answer(peer: RelayConnection) -> dict[str, Any]:
    """The page's next answer on a file."""
    async for message in peer:
        if message.startswith(b"P"):
            await peer.send(b"Q" + message[1:])
        if message.startswith(b"J"):
            return dict(json.loads(message[1:]))
    raise AssertionError("the page left")


def test_what_a_hostile_peer_sends_is_text_or_refused(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"

    async def attack() -> dict[str, dict[str, Any]]:
        async with meet(visit, session_id) as peer:
            await peer.send(b"T" + markup.encode())
            await peer.send("Tturned \u202egnp.exe\x07".encode())
            await peer.send(b"T\xff\xfe")
            told = {}
            for name in ("../../etc/passwd", ".bashrc", "a/b", "exe\u202egnp", "x" * 181, "", None):
                await peer.send(offer(name, b"x"))
                told[str(name)] = await answer(peer)
            await peer.send(say(name="huge", size=1_000_000_001))
            told["huge"] = await answer(peer)
            await peer.send(offer("damaged", b"right"))
            assert await answer(peer) == {"have": 0}
            await peer.send(b"Dwrong")
            await peer.send(digest(b"right"))
            told["damaged"] = await answer(peer)
            await peer.send(offer("&lt;b&gt; 'x' (1)", b"fine"))
            assert await answer(peer) == {"have": 0}
            await peer.send(b"Dfine")
            await peer.send(digest(b"fine"))
            assert await answer(peer) == {"done": True}
        return told

    with visiting(chromium, daphne) as visit:
        visit.go()
        attacking = beside(attack)
        visit.join(session_id, key=OF_BOB)
        visit.shows("Both sides are done")
        told = attacking.result()
        assert "up to 1 GB" in told.pop("huge")["refused"]
        assert "damaged" in told.pop("damaged")["refused"]
        for name, said in told.items():
            assert "is not a name that files are taken under" in said["refused"], name
        assert visit.heard == [markup, "turned \ufffdgnp.exe\ufffd", "\ufffd\ufffd"]
        assert visit.page.locator("main img, main script").count() == 0
        assert visit.page.get_by_role("link", name="Save").count() == 1


@pytest.mark.parametrize(
    "bad",
    [
        [b""],
        [b"X"],
        [b"J[]"],
        [b"J{"],
        [b"Dunasked"],
        [b"P" + bytes(17)],
        [say(have=0)],
        [say(name="a", size=-1)],
        [say(sha256="0" * 64)],
        [offer("a", b"abc"), digest(b"abc")],
        [offer("a", b"abc"), offer("b", b"")],
        [offer("a", b"abc"), b"Dabcd"],
        [offer("a", b"abc"), b"Dabc", say(sha256=None)],
        [offer("a", b"a"), b"Da", digest(b"a"), offer("a", b"a"), digest(b"a"), digest(b"b")],
    ],
    ids=repr,
)
def test_a_peer_that_does_not_keep_to_the_protocol_is_left(
    chromium: Browser, daphne: Relay, session_id: str, bad: list[bytes]
) -> None:
    async def misbehave() -> None:
        async with meet(visit, session_id) as peer:
            for message in bad:
                await peer.send(message)
            async for _ in peer:
                pass

    with visiting(chromium, daphne) as visit:
        visit.go()
        misbehaving = beside(misbehave)
        visit.join(session_id, key=OF_BOB)
        visit.shows("Closed", "The peer")
        assert misbehaving.exception() is not None


def test_files_that_are_too_large_or_badly_named_are_refused_before_anything_is_sent(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1_000_000_001)
    (tmp_path / ".hidden").write_bytes(b"")
    with visiting(chromium, daphne) as visit:
        visit.go()

        async def listen() -> list[bytes]:
            async with meet(visit, session_id) as peer:
                return [message async for message in peer if not message.startswith(b"P")]

        listening = beside(listen)
        visit.join(session_id, key=OF_BOB)
        visit.shows("Connected")
        visit.page.locator("#chosen").set_input_files([tmp_path / "huge", tmp_path / ".hidden"])
        visit.has("huge", "not sent: this page sends files up to 1 GB")
        visit.has(".hidden", "is not a name that files are taken under")
        visit.leave()
        visit.shows("Both sides are done")
        assert listening.result() == []


def test_a_receiver_that_refuses_is_quoted_and_the_next_file_goes(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())

    async def receive() -> list[dict[str, Any]]:
        async with meet(visit, session_id) as peer:
            offers = [await answer(peer)]
            await peer.send(b'J{"refused": "no \\u001b[31mroom"}')
            offers.append(await answer(peer))
            await peer.send(say(have=3))
            assert await answer(peer) == json.loads(digest(b"two")[1:])
            await peer.send(say(begin=3))
            assert await answer(peer) == json.loads(digest(b"two")[1:])
            await peer.send(say(done=True))
            async for _ in peer:
                pass
            return offers

    with visiting(chromium, daphne) as visit:
        visit.go()
        receiving = beside(receive)
        visit.join(session_id, key=OF_BOB)
        visit.shows("Connected")
        visit.page.locator("#chosen").set_input_files([tmp_path / "one", tmp_path / "two"])
        visit.has("one", "not sent: the receiver refuses: no \ufffd[31mroom")
        visit.has("two", "SHA-256 is right")
        visit.leave()
        assert [made["name"] for made in receiving.result()] == ["one", "two"]


def test_a_file_that_changes_while_it_is_sent_is_not_sent_as_another(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    path.write_bytes(b"as it was")

    async def receive() -> list[bytes]:
        async with meet(visit, session_id) as peer:
            await answer(peer)
            path.write_bytes(b"as it is now")
            await peer.send(b'J{"have": 0}')
            return [message async for message in peer]

    with visiting(chromium, daphne) as visit:
        visit.go()
        receiving = beside(receive)
        visit.join(session_id, key=OF_BOB)
        visit.shows("Connected")
        visit.page.locator("#chosen").set_input_files(path)
        visit.shows("Closed", "Notes can't be read any more.")
        visit.has("notes", "did it change since it was chosen?")
        assert isinstance(receiving.exception(), Closed)


def test_who_stops_in_the_middle_of_a_file_has_left_and_the_peer_knows(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    async def send() -> None:
        async with meet(visit, session_id) as peer:
            await peer.send(offer("large", bytes(1000)))
            await answer(peer)
            await peer.send(b"D" + bytes(500))
            async for _ in peer:
                pass

    with visiting(chromium, daphne) as visit:
        visit.go()
        sending = beside(send)
        visit.join(session_id, key=OF_BOB)
        visit.has("large", "received 500 B of 1 kB")
        visit.page.get_by_role("button", name="Stop and leave").click()
        visit.shows("You left")
        visit.has("large", "not received: you left")
        assert isinstance(sending.exception(), Closed)


def test_the_page_goes_on_where_a_dropped_session_left_a_file(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    content = os.urandom(20_000_000)
    seen: list[int] = []

    async def send_through_a_tap() -> None:
        async with Tap(daphne.port) as tap:
            tap.cut_after = 8_000_000
            person = Person(tmp_path / "bob", tap.url, session_id=session_id)
            (person.home / "large").write_bytes(content)
            sent = await asyncio.to_thread(finish, person.start("--peer-key", visit.key, "send", "large"))
            assert sent.returncode == 0, sent.stderr
            seen.append(len(tap.seen))

    with visiting(chromium, daphne) as visit:
        visit.go()
        sending = beside(send_through_a_tap)
        visit.join(session_id, verify=True)
        visit.page.get_by_role("button", name="They are the same").click()  # once, for both connections
        visit.has("large", "SHA-256 is right")
        visit.shows("Both sides are done")
        sending.result()
        with visit.page.expect_download() as waiting:
            visit.page.get_by_role("link", name="Save large").click()
        assert Path(waiting.value.path()).read_bytes() == content
    assert seen[0] < 24_000_000, "what was there already did not go over again"


def test_what_the_page_has_of_a_file_is_kept_only_where_it_is_of_the_same_file(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    @asynccontextmanager
    async def dropped() -> AsyncIterator[RelayConnection]:
        """A connection that drops in the end."""
        async with Tap(daphne.port) as tap:
            with contextlib.suppress(Closed):
                async with bob(tap.url, session_id, rule=Fingerprint(visit.key)) as peer:
                    yield peer
                    tap.lose()

    async def give(content: bytes, have: int, begin: int) -> None:
        async with dropped() as peer:
            await peer.send(offer("notes", content))
            assert await answer(peer) == {"have": have}
            if have:
                await peer.send(digest(content[:have]))
                assert await answer(peer) == {"begin": begin}
            if begin < len(content):
                await peer.send(b"D" + content[begin:])
            await peer.send(digest(content))
            assert await answer(peer) == {"done": True}

    async def send() -> None:
        async with dropped() as peer:
            await peer.send(offer("notes", b"unfinished"))
            assert await answer(peer) == {"have": 0}
            await peer.send(b"Dunfi")
            await peer.send(b"P")
            while await anext(aiter(peer)) != b"Q":
                pass
        await give(b"unfinished", 4, 4)
        await give(b"unfinished", 10, 10)  # as when it drops before the sender has heard that it's done
        await give(b"not it yet", 10, 0)
        await give(b"unfinished", 10, 10)
        async with dropped() as peer:
            await peer.send(offer("notes", b"one"))
            assert await answer(peer) == {"have": 0}
            await peer.send(b"Done")
            await peer.send(b"P")
            while await anext(aiter(peer)) != b"Q":
                pass
        await give(b"two", 3, 0)
        await give(b"", 0, 0)
        await give(b"", 0, 0)

    with visiting(chromium, daphne) as visit:
        visit.go()
        sending = beside(send)
        visit.join(session_id, key=OF_BOB)
        sending.result()
        expect(visit.page.get_by_role("link", name="Save notes")).to_have_count(4)
        expect(visit.page.locator("#transfers > li")).to_have_count(4)
        visit.leave()


def test_a_line_that_is_written_before_a_dropped_peer_is_back_waits_in_its_field(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    async def drop() -> None:
        async with Tap(daphne.port) as tap:
            with contextlib.suppress(Closed):
                async with bob(tap.url, session_id, rule=Fingerprint(visit.key)) as peer:
                    await anext(aiter(peer))  # a probe: the page is connected, too
                    tap.lose()

    async def listen() -> bytes:
        async with meet(visit, session_id) as peer:
            async for message in peer:
                if message.startswith(b"T"):
                    return message
        raise AssertionError("the page left")

    with visiting(chromium, daphne) as visit:
        visit.go()
        dropping = beside(drop)
        visit.join(session_id, key=OF_BOB)
        dropping.result()
        visit.shows("Waiting for the peer…")
        visit.say("are you back?")
        expect(visit.page.locator("#lines .own")).to_have_count(0)
        listening = beside(listen)
        visit.shows("Connected")
        visit.page.get_by_role("button", name="Send").click()
        assert listening.result() == b"Tare you back?"
        expect(visit.page.locator("#lines .own")).to_have_count(1)
        visit.shows("Both sides are done")


def test_who_waits_comes_back_after_a_restart_of_the_relay(
    chromium: Browser, tmp_path: Path, session_id: str
) -> None:
    with (
        running("daphne spliced", tmp_path) as relay,
        visiting(chromium, relay, allowed=("WebSocket connection to", "ERR_CONNECTION_REFUSED")) as visit,
    ):
        visit.go().join(session_id, key=OF_BOB)
        visit.shows("Waiting for the peer…")
        relay.stop()
        visit.shows("Trying again", "an't connect to the relay.")
        relay.serve()
        visit.shows("Waiting for the peer…")
        outcome = entering(meet(visit, session_id))
        visit.shows("Both sides are done")
        assert outcome.result() == []


def test_who_gives_up_while_it_tries_again_has_left(
    chromium: Browser, tmp_path: Path, session_id: str
) -> None:
    with (
        running("daphne spliced", tmp_path) as relay,
        visiting(chromium, relay, allowed=("WebSocket connection to", "ERR_CONNECTION_REFUSED")) as visit,
    ):
        visit.go().join(session_id)
        visit.shows("Waiting for the peer…")
        relay.stop()
        visit.shows("Trying again")
        visit.leave()
        visit.shows("You left")


def test_a_peer_that_answers_no_more_gets_farther_away(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    async def fall_silent() -> None:
        async with meet(visit, session_id) as peer:
            answered = False
            async for message in peer:
                if message.startswith(b"P") and not answered:
                    await peer.send(b"Q" + message[1:])
                    answered = True

    with visiting(chromium, daphne) as visit:
        visit.go()
        silent = beside(fall_silent)
        visit.join(session_id, key=OF_BOB)
        expect(visit.page.locator("#plot-text")).to_contain_text(re.compile(r", round trip [2-9]\d\d\d ms"))
        visit.leave()
        silent.result()


def test_a_relay_that_refuses_is_quoted_in_words(chromium: Browser, daphne: Relay, session_id: str) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go()
        visit.join(session_id, exp=1)
        visit.shows("Closed", "The relay does not accept the token: it is missing, expired or not valid.")
        visit.page.locator("#token").fill("no token")
        visit.page.get_by_role("button", name="Join").click()
        expect(visit.page.locator("#problem")).to_contain_text("A token is one long line")
        visit.fill(session_id)
        visit.page.get_by_label("Session", exact=True).fill("a b")
        visit.page.get_by_role("button", name="Join").click()
        expect(visit.page.locator("#problem")).to_contain_text("A session’s name is")  # noqa: RUF001


def test_the_key_stays_the_same_and_nobody_can_read_its_private_half(
    chromium: Browser, daphne: Relay
) -> None:
    with visiting(chromium, daphne) as visit:
        key = visit.go().key
        assert visit.go().key == key
        exported = visit.page.evaluate("""async () => {
            const opening = indexedDB.open("lem-relay");
            await new Promise((resolve) => { opening.onsuccess = resolve; });
            const getting = opening.result.transaction("keys").objectStore("keys").get("own");
            await new Promise((resolve) => { getting.onsuccess = resolve; });
            const { privateKey } = getting.result;
            const tries = ["jwk", "pkcs8", "raw"].map((form) => crypto.subtle.exportKey(form, privateKey));
            return (await Promise.allSettled(tries)).map((one) => one.status);
        }""")
        assert exported == ["rejected"] * 3


def test_a_token_that_names_its_role_can_not_be_handed_on(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go().fill(session_id)
        expect(visit.page.get_by_role("button", name="Copy invitation link")).to_be_visible()
        visit.fill(session_id, role="client")
        expect(visit.page.get_by_role("button", name="Copy invitation link")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_it_looks_right_and_can_be_used_by_all(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path, size: str, scheme: str
) -> None:
    """What a program can see of it: no side-scrolling, however long a word is, nothing too small or covered,
    axe-core's rules. Pictures are for people."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    content = os.urandom(3_000_000)
    unbroken = "x" * 170
    (tmp_path / unbroken).write_bytes(b"x")

    def look(name: str) -> None:
        page = visit.page
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"], name
        assert page.evaluate(SMALL) == [], name
        assert page.evaluate(COVERED) == [], name
        page.screenshot(path=PICTURES / f"console-{name}-{scheme}-{size}.png", full_page=True)
        if size == "desktop":
            check_accessibility(page)

    async def talk() -> None:
        async with meet(visit, session_id) as peer:
            await peer.send(b"TThe report is on its way, with a-very-long-word-" + b"x" * 80)
            await peer.send(offer("report-" + "november-" * 12 + ".pdf", content))
            await answer(peer)
            await peer.send(b"D" + content)
            await peer.send(digest(content))
            await answer(peer)
            await peer.send(offer("/" + unbroken, content))
            await answer(peer)
            await peer.send(offer("under way.iso", bytes(10_000_000)))
            await answer(peer)
            await peer.send(b"D" + bytes(4_000_000))
            async for message in peer:
                if message.startswith(b"P"):
                    await peer.send(b"Q" + message[1:])
                if message.startswith(b"J"):
                    await peer.send(say(refused=unbroken))
                if message == b"Tbye":
                    break

    with visiting(chromium, daphne, size, scheme) as visit:
        visit.go()
        for more in visit.page.locator("summary").all():
            more.click()
        look("idle")
        talking = beside(talk)
        visit.join(session_id, key=OF_BOB, verify=True)
        visit.shows("Compare the words")
        look("comparing")
        visit.page.get_by_role("button", name="They are the same").click()
        visit.has("under way.iso", "received 4 MB of 10 MB")
        visit.say("Thank you!")
        visit.page.locator("#chosen").set_input_files(tmp_path / unbroken)
        visit.has(unbroken, "the receiver refuses")
        expect(visit.page.locator("#plot-text")).to_contain_text(", round trip")
        expect(visit.page.locator("#plot-text")).to_contain_text(" MB/s in")
        look("connected")
        visit.say("bye")
        visit.shows("The peer has finished", "Not every file went over")
        visit.has("under way.iso", "not received: the peer has finished")
        talking.result()
        visit.page.evaluate("(name) => localStorage.setItem('lem-relay.peer.' + name, 'SHA256:')", unbroken)
        visit.join(session_id, key=OF_BOB, exp=1)
        visit.shows("Closed")
        look("closed")


def test_the_keyboard_alone_is_enough(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_bytes(b"notes")

    async def talk() -> bytes:
        async with meet(visit, session_id) as peer:
            await peer.send(b"Thello")
            heard = b""
            async for message in peer:
                match message[:1]:
                    case b"T":
                        heard = message
                    case b"J" if b"name" in message:
                        await peer.send(say(have=0))
                    case b"J":
                        await peer.send(say(done=True))
            return heard

    with visiting(chromium, daphne) as visit:
        page: Page = visit.go().page
        # From now on, as Playwright does not wait until it has begun: no dialog of the desktop's opens.
        page.on("filechooser", lambda chooser: None)
        talking = beside(talk)
        reach(page, page.locator("#token"))
        page.keyboard.insert_text(token(session_id=session_id))
        reach(page, page.get_by_label("Compare words"))
        page.keyboard.press("Space")
        reach(page, page.get_by_role("button", name="Join"))
        page.keyboard.press("Enter")
        visit.shows("Compare the words")
        expect(page.get_by_role("button", name="They are the same")).to_be_focused()
        page.keyboard.press("Enter")
        visit.shows("Connected")
        expect(page.get_by_label("Message", exact=True)).to_be_focused()
        page.keyboard.type("typed")
        page.keyboard.press("Enter")
        reach(page, page.get_by_role("button", name="Choose files…"))
        with page.expect_file_chooser() as choosing:
            page.keyboard.press("Enter")
        choosing.value.set_files(tmp_path / "notes.txt")
        visit.has("notes.txt", "SHA-256 is right")
        reach(page, page.get_by_role("button", name="Leave"))
        page.keyboard.press("Enter")
        visit.shows("Both sides are done")
        expect(page.locator("#token")).to_be_focused()
        assert talking.result() == b"Ttyped"


RECORD_DRAGS = """() => {
    window.drags = [];
    const record = (event) =>
        drags.push([event.type, event.defaultPrevented, event.dataTransfer.dropEffect]);
    for (const type of ["dragover", "drop"]) addEventListener(type, record);
}"""
"""After the page's own listeners: what it answered to each."""

RECORD_PROGRESS = """() => {
    window.progress = [];
    new MutationObserver((changes) => {
        for (const { target } of changes) if (target.localName === "progress") progress.push(target.value);
    }).observe(document.getElementById("transfers"), { subtree: true, attributeFilter: ["value"] });
}"""


def drag(visit: Visit, onto: str, data: dict[str, Any], *, drop: bool = True) -> None:
    """Drag `data` over an element and let it go there, as a desktop does: the browser finds the target."""
    place = visit.page.locator(onto)
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    assert box
    drags = visit.page.context.new_cdp_session(visit.page)
    for step in ("dragEnter", "dragOver", *(["drop"] if drop else [])):
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        given = {"items": [], "dragOperationsMask": 1, **data}
        drags.send("Input.dispatchDragEvent", {"type": step, **at, "data": given})
    drags.detach()


def files(*paths: Path) -> dict[str, Any]:
    return {"files": [str(path) for path in paths]}


def test_a_file_that_is_dropped_anywhere_on_the_page_arrives_and_its_progress_is_shown(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    size = 20_000_000
    person = Person(tmp_path / "bob", daphne.url, session_id=session_id)
    for name, length in (("large", size), ("small", 5), ("missed the box", 7)):
        (tmp_path / name).write_bytes(os.urandom(length))
    with visiting(chromium, daphne) as visit:
        page = visit.go().page
        visit.join(session_id)
        receiving = person.start("--peer-key", visit.key, "receive")
        visit.shows("Connected")
        page.evaluate(RECORD_DRAGS)
        page.evaluate(RECORD_PROGRESS)
        drag(visit, "#drop", files(tmp_path / "large", tmp_path / "small"), drop=False)
        expect(page.locator("#drop")).to_have_class("over")
        drag(visit, "#drop", files(tmp_path / "large", tmp_path / "small"))
        expect(page.locator("#drop")).not_to_have_class("over")
        visit.has("large", f"sent, {size // 1_000_000} MB, SHA-256 is right")
        visit.has("small", "SHA-256 is right")
        drag(visit, "h1", files(tmp_path / "missed the box"))
        visit.has("missed the box", "SHA-256 is right")
        visit.leave()
        visit.shows("Both sides are done")
        assert ["drop", True, "copy"] in page.evaluate("drags")
        assert all(prevented for _, prevented, _ in page.evaluate("drags"))
        seen = [at for at in page.evaluate("progress") if at > 7]
    received = finish(receiving)
    assert received.returncode == 0, received.stderr
    assert received.stdout == b"large\nsmall\nmissed the box\n"
    for name in ("large", "small", "missed the box"):
        sums = [hashlib.sha256((at / name).read_bytes()).hexdigest() for at in (tmp_path, person.home)]
        assert sums[0] == sums[1], name
    assert seen == sorted(seen)
    assert len([at for at in set(seen) if 0 < at < size]) > 5, "on its way it was seen at several places"


def test_a_file_that_is_dropped_while_nobody_is_there_is_not_taken_and_the_page_stays(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    (tmp_path / "early").write_bytes(b"early")
    with visiting(chromium, daphne) as visit:
        page = visit.go().page
        page.evaluate(RECORD_DRAGS)

        def try_everywhere(*places: str) -> None:
            for place in places:
                drag(visit, place, files(tmp_path / "early"))
            assert page.locator("#transfers li").count() == page.locator(".over").count() == 0

        try_everywhere("h1", "#token")
        visit.join(session_id, key=OF_BOB)
        visit.shows("Waiting for the peer…")
        try_everywhere("h1", "#state")
        outcome = entering(meet(visit, session_id))
        visit.shows("Both sides are done")
        assert outcome.result() == [], "nor was it kept for whoever came"
        try_everywhere("h1", "#drop", "#token")
        assert page.evaluate("drags.length") >= 7
        assert {tuple(drag) for drag in page.evaluate("drags")} == {("dragover", True, "none")}


def test_text_can_be_dragged_into_a_field_and_nothing_else_takes_it(chromium: Browser, daphne: Relay) -> None:
    text = {"items": [{"mimeType": "text/plain", "data": "dragged.to.it"}]}
    with visiting(chromium, daphne) as visit:
        visit.go()
        drag(visit, "h1", text)
        expect(visit.page.locator("#token")).to_have_value("")
        drag(visit, "#token", text)
        expect(visit.page.locator("#token")).to_have_value("dragged.to.it")


def test_a_folder_that_is_dropped_is_not_sent_and_the_file_after_it_is(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"a file")
    person = Person(tmp_path / "bob", daphne.url, session_id=session_id)
    with visiting(chromium, daphne) as visit:
        visit.go().join(session_id)
        receiving = person.start("--peer-key", visit.key, "receive")
        visit.shows("Connected")
        drag(visit, "#drop", files(tmp_path / "folder", tmp_path / "file"))
        visit.has("folder", "not sent: it can't be read")
        visit.has("file", "SHA-256 is right")
        visit.leave()
    assert finish(receiving).stdout == b"file\n"


def lacking(visit: Visit, url: str) -> str:
    visit.page.goto(url)
    expect(visit.page.locator("#page")).to_be_hidden()
    expect(visit.page.locator("#lacking")).to_be_visible()
    return visit.page.locator("#lacking").inner_text()


def test_a_browser_without_x25519_is_told_so(chromium: Browser, daphne: Relay) -> None:
    with visiting(chromium, daphne) as visit:
        visit.page.add_init_script("""
            const generate = crypto.subtle.generateKey;
            crypto.subtle.generateKey = function (algorithm, ...rest) {
                if (algorithm.name === "X25519") throw new DOMException("no", "NotSupportedError");
                return generate.call(this, algorithm, ...rest);
            };
        """)
        assert "It has no X25519 in WebCrypto" in lacking(visit, f"{daphne.http_url}/console/")
        check_accessibility(visit.page)


def test_a_page_that_came_unencrypted_over_a_network_says_so(chromium: Browser, daphne: Relay) -> None:
    """Chromium is told that this name is this machine: it doesn't trust it as it trusts 127.0.0.1."""
    with visiting(chromium, daphne, allowed=("elsewhere: ", "Cross-Origin-Opener-Policy")) as visit:
        url = f"http://relay.example:{daphne.port}/console/"
        assert "Browsers encrypt on pages only that came over https" in lacking(visit, url)


def test_a_browser_without_scripts_or_modules_is_told_so(chromium: Browser, daphne: Relay) -> None:
    with visiting(chromium, daphne, java_script_enabled=False) as visit:
        assert "It needs JavaScript with modules" in lacking(visit, f"{daphne.http_url}/console/")
    with visiting(chromium, daphne, allowed=("net::ERR_FAILED",)) as visit:
        visit.page.route("**/noise.js", lambda route: route.abort())
        assert "It needs JavaScript with modules" in lacking(visit, f"{daphne.http_url}/console/")


def test_nothing_in_line_can_run_in_it(chromium: Browser, daphne: Relay) -> None:
    """The policy that is in force, tried out."""
    with visiting(chromium, daphne, allowed=("Content Security Policy",)) as visit:
        visit.go()
        visit.page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'run'";
            document.body.append(script);
            const style = document.createElement("style");
            style.textContent = "body { display: none }";
            document.head.append(style);
        }""")
        assert visit.page.title() == "Lem Relay console"
        expect(visit.page.locator("body")).to_be_visible()
        assert len(visit.troubles) >= 2
