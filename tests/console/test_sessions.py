"""Python to browser and browser to browser across a real relay: words, messages and files are the same on
both sides, and whoever doesn't belong is refused before anything passes."""

import hashlib
import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from relay.client.connection import Closed, RelayConnection
from relay.client.peers import Fingerprint, KnownPeers, PeerRefused
from relay.client.wire import REFUSED
from tests.client.ends import ALICE, OF_ALICE, OF_BOB, bob
from tests.client.test_command_line import Person, finish
from tests.console.ends import Visit, beside, entering, visiting
from tests.relays import ROOT, Relay
from tests.unit.test_client_peers import rule, signed

pytestmark = pytest.mark.system

FILE_BYTES = 50_000_000


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def downloaded(visit: Visit, name: str, into: Path) -> Path:
    """What a person who saves a received file has then."""
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("link", name=f"Save {name}").click()
    assert waiting.value.suggested_filename == name
    waiting.value.save_as(into / name)
    return into / name


def test_python_and_a_browser_talk_and_show_the_same_words(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go()
        side = bob(daphne.url, session_id, rule=Fingerprint(visit.key))

        async def talk() -> tuple[str, str, bytes]:
            async with side as peer:
                await peer.send("Tgrüße <b>from</b> Python".encode())
                async for message in peer:
                    if message.startswith(b"T"):
                        return peer.words, peer.peer_fingerprint, message
            raise AssertionError("the page left")

        talking = beside(talk)
        visit.join(session_id, key=OF_BOB)
        visit.shows("Connected")
        visit.hears("grüße <b>from</b> Python")
        words = visit.words
        expect(visit.page.locator("#peer-fingerprint")).to_have_text(OF_BOB)
        visit.say("hello from a browser")
        assert talking.result() == (words, visit.key, b"Thello from a browser")
        visit.shows("Both sides are done")


def test_a_file_crosses_from_python_to_a_browser(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    person = Person(tmp_path / "bob", daphne.url, session_id=session_id)
    (person.home / "large.bin").write_bytes(os.urandom(FILE_BYTES))
    (person.home / "empty file.txt").write_bytes(b"")
    with visiting(chromium, daphne) as visit:
        visit.go().join(session_id)
        sending = person.start("--peer-key", visit.key, "send", "large.bin", "empty file.txt")
        visit.has("empty file.txt", "SHA-256 is right")
        for name in ("large.bin", "empty file.txt"):
            assert digest(downloaded(visit, name, tmp_path)) == digest(person.home / name)
        sent = finish(sending)
        assert sent.returncode == 0, sent.stderr
        visit.shows("Both sides are done")


def test_a_file_crosses_from_a_browser_to_python(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    person = Person(tmp_path / "bob", daphne.url, session_id=session_id)
    (tmp_path / "large.bin").write_bytes(os.urandom(FILE_BYTES))
    (tmp_path / "small").write_bytes(b"small")
    with visiting(chromium, daphne) as visit:
        visit.go().join(session_id)
        receiving = person.start("--peer-key", visit.key, "receive")
        visit.shows("Connected")
        visit.page.locator("#chosen").set_input_files([tmp_path / "large.bin", tmp_path / "small"])
        visit.say("two files for you")
        visit.has("small", "SHA-256 is right")
        visit.leave()
        visit.shows("Both sides are done")
    received = finish(receiving)
    assert received.returncode == 0, received.stderr
    assert received.stdout == b"large.bin\nsmall\n"
    assert received.stderr == b"peer: two files for you\n"
    for name in ("large.bin", "small"):
        assert digest(person.home / name) == digest(tmp_path / name)


def test_two_browsers_meet_by_an_invitation_compare_words_and_send_files_both_ways_at_once(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    for name, size in (("there", FILE_BYTES), ("back", FILE_BYTES // 5)):
        (tmp_path / name).write_bytes(os.urandom(size))
    permissions = ["clipboard-read", "clipboard-write"]
    with (
        visiting(chromium, daphne, permissions=permissions) as one,
        visiting(chromium, daphne) as two,
    ):
        one.go().join(session_id, verify=True)
        one.shows("Waiting for the peer…")
        one.page.get_by_role("button", name="Copy invitation link").click()
        link = one.page.evaluate("navigator.clipboard.readText()")
        two.go("#" + link.partition("#")[2])
        assert two.page.url == f"{daphne.http_url}/console/", "the token is gone from the address bar"
        two.page.get_by_role("button", name="Join").click()
        one.shows("Compare the words")
        two.shows("Waiting until the peer accepts you…")
        assert one.words == two.words
        assert [len(word) for word in one.words.split("-")] == [5] * 8
        one.page.get_by_role("button", name="They are the same").click()
        for visit in (one, two):
            visit.shows("Connected")
        one.page.locator("#chosen").set_input_files(tmp_path / "there")
        two.page.locator("#chosen").set_input_files(tmp_path / "back")
        one.say("in the middle of it")
        two.say("likewise")
        two.hears("in the middle of it")
        one.hears("likewise")
        two.has("there", "received, 50 MB, SHA-256 is right")
        one.has("back", "received, 10 MB, SHA-256 is right")
        saved = tmp_path / "saved"
        for visit, name in ((two, "there"), (one, "back")):
            assert digest(downloaded(visit, name, saved)) == digest(tmp_path / name)
        two.leave()
        for visit in (one, two):
            visit.shows("Both sides are done")


def test_the_readme_s_token_joins(chromium: Browser, daphne: Relay) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## In the browser")[2]
    (command,) = re.findall(
        r"^    \.venv/bin/python manage\.py (issue_token .*)$", section.partition("##")[0], re.M
    )
    issued = daphne.manage(*command.split()).stdout.strip()
    with visiting(chromium, daphne) as visit:
        visit.go().page.locator("#token").fill(issued)
        visit.page.get_by_role("button", name="Join").click()
        visit.shows("Waiting for the peer…", "“hello”")
        visit.leave()
        visit.shows("You left")


def refuses_us(outcome: BaseException | list[bytes]) -> bool:
    """Whether the side was turned away on meeting, when it had got nothing yet."""
    return isinstance(outcome, Closed) and outcome.code == REFUSED


def test_a_token_for_another_session_meets_nobody(chromium: Browser, daphne: Relay, session_id: str) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go().fill("other")
        visit.page.get_by_label("Session", exact=True).fill(session_id)
        visit.page.get_by_role("button", name="Join").click()
        visit.shows("Closed", "The token is for another session or role.")
        expect(visit.page.locator("#peer")).to_be_hidden()


def test_two_who_mean_different_sessions_refuse_each_other(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    """A relay that brings two sessions together can't make them talk: their prologues differ."""
    with visiting(chromium, daphne) as visit:
        visit.go()
        side = bob(daphne.url, session_id, rule=Fingerprint(visit.key))
        side._session_id = "another"  # what it believes, whatever the path says
        outcome = entering(side)
        visit.join(session_id, key=OF_BOB)
        expect(visit.page.locator("#state")).to_have_text("Closed")
        refused = outcome.result()
        assert isinstance(refused, Exception)
        assert not isinstance(refused, TimeoutError)
        assert visit.page.locator("#peer").is_hidden()


def test_the_page_refuses_a_wrong_fingerprint_before_anything_passes(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go()
        outcome = entering(bob(daphne.url, session_id, rule=Fingerprint(visit.key)))
        visit.join(session_id, key=OF_ALICE)
        visit.shows("The peer was refused", f"The peer's key is {OF_BOB}, not {OF_ALICE}.")
        assert refuses_us(outcome.result())
        expect(visit.page.locator("#talk")).to_be_hidden()


def test_python_refuses_a_wrong_fingerprint_and_the_page_says_so(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go()
        outcome = entering(bob(daphne.url, session_id, rule=Fingerprint(OF_ALICE)))
        visit.join(session_id, key=OF_BOB)
        visit.shows("Closed", "The peer does not accept our key.")
        assert isinstance(outcome.result(), PeerRefused)
        expect(visit.page.locator("#talk")).to_be_hidden()


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "not shown"])
def test_two_sides_that_accept_vouching_tokens_only_meet_where_both_show_theirs(
    chromium: Browser, daphne: Relay, session_id: str, shown: bool
) -> None:
    def vouching(key: str) -> str:
        return signed("ES256", session_id=session_id, noise_key=key)

    signer = rule("ES256")
    with visiting(chromium, daphne) as visit:
        visit.go().fill(session_id)
        outcome = entering(bob(daphne.url, session_id, rule=signer, vouching_token=vouching(OF_BOB)))
        visit.page.get_by_label("Only a peer that shows a vouching token").check()
        visit.page.locator("#signer").fill(signer.public_key_pem.decode())
        join = visit.page.get_by_role("button", name="Join")
        if not shown:
            join.click()
            visit.shows("Closed", "The peer does not accept our key.")
            assert isinstance(outcome.result(), PeerRefused)
            return
        visit.page.get_by_text("Show the peer a vouching token").click()
        token = visit.page.get_by_label("Vouching token", exact=True)
        token.fill(vouching(OF_ALICE))
        join.click()
        expect(visit.page.locator("#problem")).to_contain_text("is not for this browser")
        token.fill(vouching(visit.key))
        join.click()
        visit.shows("Both sides are done")
        assert outcome.result() == []
        expect(visit.page.locator("#peer-note")).to_contain_text("vouching token")


def test_a_known_peer_with_another_key_is_refused_until_it_is_forgotten(
    chromium: Browser, daphne: Relay, session_id: str
) -> None:
    def side(**options: object) -> RelayConnection:
        return bob(daphne.url, session_id, rule=Fingerprint(visit.key), **options)

    with visiting(chromium, daphne) as visit:
        visit.go()
        for told in ("the first key seen", "the same key as ever"):
            outcome = entering(side())
            visit.join(session_id)
            visit.shows("Both sides are done")
            expect(visit.page.locator("#peer-note")).to_contain_text(told)
            assert outcome.result() == []
        outcome = entering(side(key=ALICE))
        visit.join(session_id)
        visit.shows("The peer was refused", f"HAS CHANGED: it was {OF_BOB}, now it is {OF_ALICE}.")
        assert refuses_us(outcome.result())
        visit.page.get_by_text("Known peers", exact=True).click()
        visit.page.get_by_role("button", name=f"Forget {session_id}").click()
        outcome = entering(side(key=ALICE))
        visit.join(session_id)
        visit.shows("Both sides are done")
        assert outcome.result() == []


def test_python_refuses_a_browser_whose_key_changed(
    chromium: Browser, daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """Another profile of a browser is another key."""
    for accepted in (True, False):
        with visiting(chromium, daphne) as visit:
            visit.go()
            outcome = entering(bob(daphne.url, session_id, rule=KnownPeers(tmp_path / "known")))
            visit.join(session_id, key=OF_BOB)
            if accepted:
                visit.shows("Both sides are done")
                assert outcome.result() == []
            else:
                visit.shows("Closed", "The peer does not accept our key.")
                assert isinstance(outcome.result(), PeerRefused)


@pytest.mark.parametrize("equal", [True, False], ids=["the same", "different"])
def test_nothing_passes_before_the_words_were_compared(
    chromium: Browser, daphne: Relay, session_id: str, equal: bool
) -> None:
    with visiting(chromium, daphne) as visit:
        visit.go()
        outcome = entering(bob(daphne.url, session_id, rule=Fingerprint(visit.key)))
        visit.join(session_id, key=OF_BOB, verify=True)
        visit.shows("Compare the words")
        assert not outcome.done(), "the page has not said that it is ready"
        expect(visit.page.locator("#talk")).to_be_hidden()
        if equal:
            visit.page.get_by_role("button", name="They are the same").click()
            visit.shows("Both sides are done")
            assert outcome.result() == []
        else:
            visit.page.get_by_role("button", name="They differ").click()
            visit.shows("The peer was refused", "The words on the two sides are not the same.")
            assert refuses_us(outcome.result())
