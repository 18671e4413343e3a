"""The client's command line, as two people use it: separate processes across a real relay."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relay.client.connection import Closed
from relay.client.disk import TransferRefused, Unfinished, safe_name
from relay.client.files import TransferBroken, receive_files, send_files
from relay.client.options import side_of
from tests.client.ends import BOB, OF_ALICE, SECONDS, Tap, alice, bob, outcome
from tests.client.test_connection import raw
from tests.relays import ROOT, Relay
from tests.tokens import token


class Person:
    """Someone with a home folder, a token and a key of their own."""

    def __init__(self, home: Path, url: str, **claims: str) -> None:
        home.mkdir()
        self.home = home
        self.url = url
        self.environ = {
            **os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT),
            "RELAY_TOKEN": token(sub=home.name, **claims),
        }  # fmt: skip

    def start(self, *arguments: str, **streams: object) -> "subprocess.Popen[bytes]":
        """Run a command of the client in their home folder."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        command = [sys.executable, "-m", "relay.client", "--url", self.url, *arguments]
        return subprocess.Popen(command, cwd=self.home, env=self.environ, **pipes)

    def run(self, *arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """As `start`, to its end."""
        return finish(self.start(*arguments), given)


def pem(key: X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class PersonOfBob(Person):
    """Who Alice expects and who expects her, see `tests.client.ends`."""

    def __init__(self, home: Path, url: str, **claims: str) -> None:
        super().__init__(home, url, **claims)
        self.key = home / "key.pem"
        self.key.write_bytes(pem(BOB))

    def start(self, *arguments: str, **streams: object) -> "subprocess.Popen[bytes]":
        return super().start("--key-file", str(self.key), "--peer-key", OF_ALICE, *arguments, **streams)


def finish(
    process: "subprocess.Popen[bytes]", given: bytes | None = None
) -> "subprocess.CompletedProcess[bytes]":
    try:
        out, err = process.communicate(given, timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def people(daphne: Relay, session_id: str, tmp_path: Path) -> tuple[Person, Person]:
    return tuple(Person(tmp_path / name, daphne.url, session_id=session_id) for name in ("alice", "bob"))


def test_files_cross_with_equal_digests_and_nothing_but_their_names_on_stdout(
    people: tuple[Person, Person],
) -> None:
    alice, bob = people
    (alice.home / "large").write_bytes(os.urandom(50_000_000))
    (alice.home / "empty file.txt").write_bytes(b"")
    receiving = bob.start("receive")
    sent = alice.run("send", "large", "empty file.txt")
    received = finish(receiving)
    assert (sent.returncode, received.returncode) == (0, 0), sent.stderr + received.stderr
    assert received.stdout == b"large\nempty file.txt\n"
    assert sent.stdout == sent.stderr == received.stderr == b""
    for name in ("large", "empty file.txt"):
        one, two = (hashlib.sha256((who.home / name).read_bytes()).digest() for who in people)
        assert one == two
    assert not list(bob.home.glob(".*.part"))


def test_a_person_at_a_terminal_sees_what_goes_on(people: tuple[Person, Person]) -> None:
    """The peer's key, so that it can be told apart from another one's, and how long it will take."""
    alice, bob = people
    (alice.home / "large").write_bytes(os.urandom(20_000_000))
    terminal = Terminal()
    fcntl.ioctl(terminal.command, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    receiving = bob.start("receive", stderr=terminal.command)
    sent = alice.run("send", "large")
    received = finish(receiving)
    terminal.close()
    assert (sent.returncode, received.returncode) == (0, 0), sent.stderr + terminal.shown
    key = alice.run("key", "show").stdout.strip()
    waiting, remembered, here, progress = terminal.shown.strip().split(b"\r\n")
    assert waiting == b"waiting for the peer"
    assert key in remembered
    assert b"known_peers" in remembered
    assert here == b"the peer is here, with the key " + key
    shown = progress.split(b"\r")[-1]
    assert re.match(rb"large: 100%.*20\.0M/20\.0M \[\d\d:\d\d<00:00, [\d.]+MB/s\]", shown), shown
    assert received.stdout == b"large\n"


def test_a_file_that_is_there_already_is_sent_successfully_again(people: tuple[Person, Person]) -> None:
    """As when the session drops while the receiver says that it has it."""
    alice, bob = people
    for name, content in (("notes", b"the same"), ("empty", b"")):
        for who in people:
            (who.home / name).write_bytes(content)
    receiving = bob.start("receive")
    sent = alice.run("send", "notes", "empty")
    received = finish(receiving)
    assert (sent.returncode, received.returncode) == (0, 0), sent.stderr + received.stderr
    assert received.stdout == b"notes\nempty\n"


@pytest.mark.parametrize("new", [b"new", b"longer"])
def test_a_file_that_exists_is_not_overwritten(people: tuple[Person, Person], new: bytes) -> None:
    alice, bob = people
    (alice.home / "notes").write_bytes(new)
    (bob.home / "notes").write_bytes(b"old")
    receiving = bob.start("receive")
    sent = alice.run("send", "notes")
    received = finish(receiving)
    assert (sent.returncode, received.returncode) == (1, 1)
    for said in (sent.stderr, received.stderr):
        assert b"notes exists already, and nothing is overwritten" in said
        assert said.count(b"\n") == 1
    assert (bob.home / "notes").read_bytes() == b"old"


async def test_a_transfer_goes_on_where_a_dropped_session_left_it(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    content = os.urandom(20_000_000)
    digest = hashlib.sha256(content).hexdigest()
    async with Tap(daphne.port) as tap:
        alice = Person(tmp_path / "alice", tap.url, session_id=session_id)
        bob = Person(tmp_path / "bob", daphne.url, session_id=session_id)
        (alice.home / "large").write_bytes(content)
        tap.cut_after = 8_000_000
        receiving = bob.start("receive")
        sending = alice.start("send", "large")
        async with asyncio.timeout(60):
            sent, received = await asyncio.gather(
                asyncio.to_thread(finish, sending), asyncio.to_thread(finish, receiving)
            )
    assert (sent.returncode, received.returncode) == (0, 0), sent.stderr + received.stderr
    # Which close the receiver saw depends on whether a frame was cut in two: none fits into its middle.
    assert b"connection" in received.stderr
    assert b"dropped; going on from there\n" in received.stderr
    assert hashlib.sha256((bob.home / "large").read_bytes()).hexdigest() == digest
    assert len(tap.seen) < 24_000_000, "what was there already did not go over again"


class Terminal:
    """A terminal that a command has as its own, so that it can ask there while its streams are pipes."""

    def __init__(self) -> None:
        self._person, self.command = pty.openpty()
        os.set_blocking(self._person, False)
        self.shown = b""
        self._answered = 0

    def take(self) -> None:
        """In the command's process, before it begins a session of its own: make this its terminal."""
        fcntl.ioctl(self.command, termios.TIOCSCTTY, 0)

    async def answer(self, question: bytes, answer: bytes) -> None:
        """Wait until the question is shown, after those that were answered, and type the answer."""
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._person, readable.set)
        while (at := self.shown.find(question, self._answered)) < 0:
            await readable.wait()
            readable.clear()
            with contextlib.suppress(BlockingIOError):  # it was said twice
                self.shown += os.read(self._person, 65536)
        self._answered = at + len(question)
        asyncio.get_running_loop().remove_reader(self._person)
        os.write(self._person, answer)

    def close(self) -> None:
        """Once the command has ended: all that it has shown is in `shown`."""
        os.close(self.command)
        with contextlib.suppress(OSError):  # as Linux has it, when nobody has the other end any more
            while data := os.read(self._person, 65536):
                self.shown += data
        os.close(self._person)


async def test_the_words_are_compared_once_for_a_key_however_often_the_session_drops(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    terminal = Terminal()
    async with Tap(daphne.port) as tap:
        alice = Person(tmp_path / "alice", tap.url, session_id=session_id)
        bob = Person(tmp_path / "bob", daphne.url, session_id=session_id)
        (alice.home / "large").write_bytes(os.urandom(10_000_000))
        tap.cut_after = 4_000_000
        receiving = bob.start("receive")
        sending = alice.start(
            "--verify", "send", "large",
            start_new_session=True, preexec_fn=terminal.take, pass_fds=[terminal.command],
        )  # fmt: skip
        async with asyncio.timeout(60):
            await terminal.answer(b"[y/N]", b"y\n")
            sent, received = await asyncio.gather(
                asyncio.to_thread(finish, sending), asyncio.to_thread(finish, receiving)
            )
    terminal.close()
    assert (sent.returncode, received.returncode) == (0, 0), sent.stderr + received.stderr
    assert b"going on from there" in received.stderr
    assert terminal.shown.count(b"[y/N]") == 1
    asked, now = re.findall(rb"\w{5}(?:-\w{5}){7}", terminal.shown)
    assert asked != now, "the new words are shown to whoever has to compare them over there"


async def test_words_that_a_person_finds_different_refuse_the_peer(
    people: tuple[Person, Person], session_id: str
) -> None:
    alice, bob = people
    terminal = Terminal()
    receiving = bob.start("receive")
    sending = alice.start(
        "--verify", "send", "/dev/null",
        start_new_session=True, preexec_fn=terminal.take, pass_fds=[terminal.command],
    )  # fmt: skip
    async with asyncio.timeout(60):
        await terminal.answer(b"[y/N]", b"\n")
        sent, received = await asyncio.gather(
            asyncio.to_thread(finish, sending), asyncio.to_thread(finish, receiving)
        )
    terminal.close()
    assert (sent.returncode, received.returncode) == (6, 6)


def test_words_that_nobody_can_be_asked_about_refuse_the_peer(people: tuple[Person, Person]) -> None:
    alice, bob = people
    receiving = bob.start("receive")
    sending = alice.start("--verify", "send", "/dev/null", start_new_session=True)  # without a terminal
    sent, received = finish(sending), finish(receiving)
    assert (sent.returncode, received.returncode) == (1, 5)
    assert b"no terminal to show words at" in sent.stderr
    assert sent.stderr.count(b"\n") == 1


async def test_a_question_is_withdrawn_when_the_peer_leaves_and_asked_anew_when_it_returns(
    people: tuple[Person, Person], session_id: str
) -> None:
    """What is typed late is no answer about whoever comes next."""
    alice, bob = people
    terminal = Terminal()
    asking = alice.start(
        "--verify", "serve", "--allow", "127.0.0.1:1", session_id,
        start_new_session=True, preexec_fn=terminal.take, pass_fds=[terminal.command],
    )  # fmt: skip
    async with asyncio.timeout(60):
        leaving = bob.start("pipe", session_id)
        await terminal.answer(b"[y/N]", b"")
        leaving.terminate()
        await terminal.answer(b"never mind", b"y\n")
        returning = bob.start("pipe", session_id)
        await terminal.answer(b"[y/N]", b"n\n")
        asked, returned = await asyncio.gather(
            asyncio.to_thread(finish, asking), asyncio.to_thread(finish, returning)
        )
    await asyncio.to_thread(finish, leaving)
    terminal.close()
    assert (asked.returncode, returned.returncode) == (6, 6)
    assert asked.stderr.splitlines()[0] == b"the peer left; waiting for the next one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["before the peer came", "while asking", "while serving"])
async def test_whoever_is_told_to_stop_leaves_in_order(
    daphne: Relay, session_id: str, tmp_path: Path, number: signal.Signals, where: str
) -> None:
    met = asyncio.Event()

    async def meet() -> None:
        async with alice(daphne.url, session_id) as peer:
            met.set()
            async for _ in peer:
                pass

    verify = ["--verify"] if where == "while asking" else []
    terminal = Terminal()
    async with asyncio.timeout(60), Tap(daphne.port) as tap:
        serving = PersonOfBob(tmp_path / "bob", tap.url, session_id=session_id).start(
            *verify, "serve", "--allow", "127.0.0.1:1", session_id,
            start_new_session=True, preexec_fn=terminal.take, pass_fds=[terminal.command],
        )  # fmt: skip
        await tap.shows(b" 101 ")
        if where != "before the peer came":
            meeting = asyncio.create_task(meet())
            await (terminal.answer(b"[y/N]", b"") if verify else met.wait())
        serving.send_signal(number)
        stopped = await asyncio.to_thread(finish, serving)
        if where != "before the peer came":
            with pytest.raises(Closed) as left:
                await meeting
            assert left.value.code == 1001
    terminal.close()
    assert stopped.returncode == 128 + number
    assert stopped.stderr == b""


def test_a_receiver_takes_no_more_than_it_said(people: tuple[Person, Person]) -> None:
    alice, bob = people
    for name, size in (("one", 6), ("two", 5)):
        (alice.home / name).write_bytes(bytes(size))
    receiving = bob.start("receive", "--max-bytes", "10")
    sent = alice.run("send", "one", "two")
    received = finish(receiving)
    assert (sent.returncode, received.returncode) == (1, 1)
    for said in (sent.stderr, received.stderr):
        assert b"no more than 10 bytes are taken" in said
    assert [path.name for path in bob.home.iterdir() if path.is_file()] == ["one"]
    receiving = bob.start("receive", "--max-bytes", "11")
    assert alice.run("send", "one", "two").returncode == 0
    assert finish(receiving).stdout == b"one\ntwo\n"


async def test_what_the_disk_has_no_room_for_is_refused_before_it_is_sent(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    async def offer() -> bytes:
        async with alice(daphne.url, session_id) as peer:
            offered = {"name": "huge", "size": 2**60}
            await peer.send(b"J" + json.dumps(offered).encode())
            return await anext(aiter(peer))

    offering = asyncio.create_task(offer())
    async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
        with pytest.raises(TransferRefused, match="the disk has room for"):
            await receive_files(peer, tmp_path, lambda *_: None)
    assert b"refused" in await offering
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_what_was_left_unfinished_goes_on_only_where_it_is_of_the_same_file(
    people: tuple[Person, Person],
) -> None:
    alice, bob = people
    (alice.home / "notes").write_bytes(b"what it says")
    for left in (b"what", b"WHAT", b"WHAT IT SAYS", b"WHAT IT SAYS, AND MORE"):
        (bob.home / ".notes.12.part").write_bytes(left)
        receiving = bob.start("receive")
        sent, received = alice.run("send", "notes"), finish(receiving)
        assert (sent.returncode, received.returncode) == (0, 0), sent.stderr + received.stderr
        assert not (bob.home / ".notes.12.part").exists()
        assert (bob.home / "notes").read_bytes() == b"what it says"
        (bob.home / "notes").unlink()


async def give(relay: Relay, session_id: str, *messages: bytes) -> list[bytes]:
    """Everything that a receiver answers who is sent these messages."""
    async with alice(relay.url, session_id) as peer:
        for message in messages:
            await peer.send(message)
        await peer.end()
        return [answer async for answer in peer]


@pytest.mark.parametrize(
    ("rest", "error", "match"),
    [
        ([b"Dabcd", b'J{"sha256": "%s"}' % (b"0" * 64)], TransferRefused, "a came over damaged"),
        ([b"Dabcd", b'J{"sha256": 0}'], TransferBroken, "did not say which SHA-256"),
        ([b"Dabcde"], TransferBroken, "something else than the rest of a"),
        ([b"D"], TransferBroken, "something else than the rest of a"),
        ([b"Dab", b"J{}"], TransferBroken, "something else than the rest of a"),
        ([b"Dab"], TransferBroken, "something else than the rest of a"),
    ],
)
async def test_a_sender_that_does_not_send_what_it_says_leaves_no_file(
    daphne: Relay, session_id: str, tmp_path: Path, rest: list[bytes], error: type[Exception], match: str
) -> None:
    giving = asyncio.create_task(give(daphne, session_id, b'J{"name": "a", "size": 4}', *rest))
    with pytest.raises(error, match=match):
        async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
            await receive_files(peer, tmp_path, lambda *_: None)
    await asyncio.wait({giving})
    assert not (tmp_path / "a").exists()
    assert (tmp_path / ".a.4.part").exists() == (error is TransferBroken), (
        "what is known to be wrong is deleted"
    )


@pytest.mark.parametrize(
    ("answers", "error", "match"),
    [
        ([{"have": 5}], TransferBroken, "has more than there is"),
        ([{"have": True}], TransferBroken, "has more than there is"),
        ([{"begin": 0}], TransferBroken, "did not answer on a"),
        ([{"have": 2}, {"begin": 1}], TransferBroken, "begins where it has nothing"),
        ([{"have": 2}, {"refused": "it is mine"}], TransferRefused, "the receiver refuses: it is mine"),
        ([{"have": 4}, {"begin": 4}, {"refused": "late"}], TransferRefused, "the receiver refuses: late"),
        ([{"have": 0}, {"have": 0}], TransferBroken, "did not answer on a"),
    ],
)
async def test_a_receiver_that_does_not_take_it_is_told_apart_from_one_that_makes_no_sense(
    daphne: Relay,
    session_id: str,
    tmp_path: Path,
    answers: list[dict[str, object]],
    error: type[Exception],
    match: str,
) -> None:
    (tmp_path / "a").write_bytes(b"abcd")
    telling = asyncio.create_task(
        give(daphne, session_id, *(b"J" + json.dumps(say).encode() for say in answers))
    )
    with pytest.raises(error, match=match):
        async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
            await send_files(peer, [tmp_path / "a"], lambda *_: None)
    await asyncio.wait({telling})


async def test_a_file_that_is_being_received_is_not_received_twice_at_once(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """Both would write to what is unfinished of it."""
    with Unfinished(tmp_path, "a", 4) as part:
        part.append([memoryview(b"ab")])
        giving = asyncio.create_task(give(daphne, session_id, b'J{"name": "a", "size": 4}'))
        async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
            with pytest.raises(TransferRefused, match="just being received by someone else"):
                await receive_files(peer, tmp_path, lambda *_: None)
        (refused,) = await giving
        assert b"refused" in refused
    assert (tmp_path / ".a.4.part").read_bytes() == b"ab"


@pytest.mark.parametrize("endless", ["/proc/self/status", "/dev/zero", "/dev/stdin"])
def test_what_has_no_size_before_it_is_read_is_left_to_pipe(
    people: tuple[Person, Person], endless: str
) -> None:
    alice, bob = people
    receiving = bob.start("receive")
    sent = alice.run("send", endless, given=b"what another program prints")
    finish(receiving)
    assert sent.returncode == 1
    assert b"has no size before it is read: send it through `pipe`" in sent.stderr


def test_a_pipe_carries_both_directions_to_their_ends(people: tuple[Person, Person], session_id: str) -> None:
    alice, bob = people
    there, back = os.urandom(3_000_000), os.urandom(2_000_000)
    (bob.home / "back").write_bytes(back)
    with (bob.home / "back").open("rb") as source, (bob.home / "there").open("wb") as target:
        answering = bob.start("pipe", session_id, stdin=source, stdout=target)
        piped = alice.run("pipe", session_id, given=there)
        assert answering.wait(SECONDS) == 0
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == back
    assert (bob.home / "there").read_bytes() == there
    assert piped.stderr == finish(answering).stderr == b""


def test_a_pipe_ends_each_direction_of_a_socket_by_itself(
    people: tuple[Person, Person], session_id: str
) -> None:
    """As socat and inetd give one, for both stdin and stdout."""
    alice, bob = people
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            answering = bob.start("pipe", session_id, stdin=theirs, stdout=theirs)
        asking = alice.start("pipe", session_id)
        assert asking.stdin
        asking.stdin.write(b"question")
        asking.stdin.close()
        ours.settimeout(SECONDS)
        with ours.makefile("rb") as question:
            assert question.read() == b"question"
        ours.sendall(b"answer")
        ours.shutdown(socket.SHUT_WR)
        assert asking.stdout
        assert asking.stdout.read() == b"answer"
    asking.stdin = None  # which is closed, and not to be flushed
    assert (finish(asking).returncode, finish(answering).returncode) == (0, 0)


def test_a_peer_is_cut_off_and_the_pipe_says_so(people: tuple[Person, Person], session_id: str) -> None:
    alice, bob = people
    answering = bob.start("pipe", session_id)
    asking = alice.start("pipe", session_id)
    assert asking.stdin
    assert answering.stdout
    asking.stdin.write(b"hello")
    asking.stdin.flush()
    assert answering.stdout.read(5) == b"hello"
    asking.kill()
    cut = finish(answering)
    finish(asking)
    assert cut.returncode == 5
    assert b"the peer's connection dropped" in cut.stderr


async def test_what_came_before_the_peer_was_gone_is_written_all_the_same(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """Also what whoever reads from the pipe had not taken by then."""
    person = PersonOfBob(tmp_path / "bob", daphne.url, session_id=session_id)
    content = os.urandom(900_000)
    piping = person.start("pipe", session_id)
    with contextlib.suppress(ConnectionAbortedError):
        async with asyncio.timeout(SECONDS), alice(daphne.url, session_id) as peer:
            for at in range(0, len(content), 10_000):
                await peer.send(content[at : at + 10_000])
            raise ConnectionAbortedError
    piped = await asyncio.to_thread(finish, piping)
    assert piped.returncode == 5
    assert piped.stdout == content


@pytest.mark.parametrize("wrong", ["stdout", "stdin"])
def test_a_pipe_ends_where_it_can_not_use_its_own_streams(
    daphne: Relay, session_id: str, tmp_path: Path, wrong: str
) -> None:
    """Also when nobody closes them, and the peer sends for ever."""
    person = PersonOfBob(tmp_path / "bob", daphne.url, session_id=session_id)

    async def send_for_ever() -> None:
        async with asyncio.timeout(SECONDS), alice(daphne.url, session_id) as peer:
            while True:
                await peer.send(bytes(65_518))

    with (tmp_path / "write-only").open("wb") as unreadable, Path("/dev/full").open("wb") as full:
        stream = unreadable if wrong == "stdin" else full
        piping = person.start("pipe", session_id, **{wrong: stream})
        with pytest.raises(Closed):
            asyncio.run(send_for_ever())
    piped = finish(piping)
    assert piped.returncode == 1
    assert piped.stderr.count(b"\n") == 1


def test_a_key_has_one_fingerprint_and_lets_the_peer_in(people: tuple[Person, Person]) -> None:
    alice, bob = people
    mine, theirs = (who.run("key", "show").stdout.decode().strip() for who in people)
    assert mine != theirs
    assert alice.run("key", "show").stdout.decode().strip() == mine
    (alice.home / "notes").write_bytes(b"hello")
    receiving = bob.start("--peer-key", mine, "receive")
    assert alice.run("--peer-key", theirs, "send", "notes").returncode == 0
    assert finish(receiving).returncode == 0
    receiving = bob.start("--peer-key", theirs, "receive")
    refused = alice.run("--peer-key", theirs, "send", "notes")
    refusing = finish(receiving)
    assert (refused.returncode, refusing.returncode) == (6, 6)
    assert mine.encode() in refusing.stderr
    assert b"does not accept our key" in refused.stderr


@pytest.mark.parametrize(
    ("claims", "code", "words"),
    [({"session_id": "another"}, 4, b"another session"), ({"exp": "1"}, 4, b"token"), ({}, 4, b"token")],
)
def test_what_the_relay_refuses_is_said_in_one_line(
    daphne: Relay, tmp_path: Path, claims: dict[str, str], code: int, words: bytes
) -> None:
    person = Person(tmp_path / "mallory", daphne.url)
    person.environ["RELAY_TOKEN"] = token(sub="mallory", **claims) if claims else "no token"
    said = person.run("pipe", "demo")
    assert said.returncode == code
    assert words in said.stderr
    assert said.stderr.count(b"\n") == 1


def test_a_relay_that_is_not_there_and_a_missing_token_have_exit_codes_of_their_own(tmp_path: Path) -> None:
    person = Person(tmp_path / "early", "ws://127.0.0.1:1")
    assert person.run("--retry", "0", "pipe", "demo").returncode == 5
    del person.environ["RELAY_TOKEN"]
    missing = person.run("pipe", "demo")
    assert missing.returncode == 2
    assert b"RELAY_TOKEN" in missing.stderr


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nonsense://127.0.0.1"])
def test_a_proxy_that_can_not_be_used_is_said_in_one_line(tmp_path: Path, proxy: str) -> None:
    """As the environment may name one; for SOCKS without the library that it takes, which tests have."""
    person = Person(tmp_path / "early", "wss://relay.example")
    (person.home / "python_socks.py").write_text("raise ImportError")
    person.environ |= {"https_proxy": proxy, "PYTHONPATH": f"{person.home}:{ROOT}"}
    said = person.run("pipe", "demo")
    assert said.returncode == 1
    assert b"proxy" in said.stderr.lower()
    assert said.stderr.count(b"\n") == 1


def test_a_probe_is_of_how_it_is_now(tmp_path: Path) -> None:
    person = Person(tmp_path / "early", "ws://127.0.0.1:2")
    probed = person.run("probe", "--session", "demo", "ws://127.0.0.1:1")
    assert probed.returncode == 5
    assert b"can't connect to the relay" in probed.stderr
    assert probed.stderr.count(b"\n") == 1
    probed = person.run("--retry", "0.5", "probe", "--session", "demo", "ws://127.0.0.1:1")
    assert probed.returncode == 5
    assert probed.stderr.count(b"; trying again\n") > 1


async def test_a_probe_of_which_one_leg_is_refused_does_not_wait_for_the_other(
    daphne: Relay, session_id: str, people: tuple[Person, Person]
) -> None:
    """As where somebody else has one of the two places, who says nothing to the leg in the other one."""
    async with await raw(daphne, session_id):
        probed = await asyncio.to_thread(people[0].run, "probe", daphne.url)
    assert probed.returncode == 4
    assert b"both places of this session are taken" in probed.stderr
    assert probed.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["a", "folder/a"], 2, b"the same name"),
        (["folder/.hidden"], 1, b"'.hidden' is not a name that files are taken under"),
    ],
)
def test_names_that_no_receiver_takes_are_refused_before_anyone_is_met(
    tmp_path: Path, names: list[str], code: int, words: bytes
) -> None:
    person = Person(tmp_path / "early", "ws://127.0.0.1:1", session_id="demo")
    (person.home / "folder").mkdir()
    for name in names:
        (person.home / name).write_bytes(b"content")
    said = person.run("send", *names)
    assert said.returncode == code
    assert words in said.stderr


async def test_the_token_file_is_read_for_each_connection(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """Tokens are short-lived, and a tunnel is not."""
    (tmp_path / "token").write_text("expired")
    options = {
        "url": daphne.url, "token_file": tmp_path / "token", "key_file": tmp_path / "key.pem", "retry": 0.0,
        "peer_key": OF_ALICE, "vouching_file": None, "verify": False,
    }  # fmt: skip
    (tmp_path / "key.pem").write_bytes(pem(BOB))
    side = side_of(options)
    refused = await outcome(side.connection(session_id))
    assert isinstance(refused, Closed)
    assert refused.code == 4401
    (tmp_path / "token").write_text(token(sub="bob") + "\n")
    both = await asyncio.gather(outcome(side.connection(session_id)), outcome(alice(daphne.url, session_id)))
    assert both == [[], []]


@pytest.mark.parametrize("option", ["--key-file", "--token-file", "--vouching-file"])
def test_a_file_that_is_not_what_it_has_to_be_is_said_in_one_line(tmp_path: Path, option: str) -> None:
    person = Person(tmp_path / "early", "ws://127.0.0.1:1")
    (person.home / "file").write_bytes(b"\xff")
    said = person.run("--retry", "0", option, "file", "pipe", "demo")
    assert said.returncode == 1
    assert said.stderr.startswith(b"lem-relay: ")
    assert said.stderr.count(b"\n") == 1


def test_a_probe_tells_how_well_the_relay_works_or_what_refused_it(
    daphne: Relay, people: tuple[Person, Person]
) -> None:
    alice, _ = people
    probed = alice.run("probe", "--megabytes", "2", daphne.url)
    assert probed.returncode == 0, probed.stderr
    assert re.fullmatch(rb"round trip [\d.]+ ms\nthroughput [\d.]+ MB/s, [\w ]+\n", probed.stdout)
    alice.environ["RELAY_TOKEN"] = token(session_id="a-role", role="client")
    one_role = alice.run("probe", daphne.url)
    assert one_role.returncode == 2
    assert b"use a token without a role" in one_role.stderr
    alice.environ["RELAY_TOKEN"] = token(session_id="a-session")
    refused = alice.run("probe", "--session", "another", daphne.url)
    assert refused.returncode == 4
    assert b"another session" in refused.stderr
    assert refused.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../up", "/etc/passwd", "a/b", "a\\b", ".bashrc", "a\nb", "a\0b", "\x1b[2J", "c:d", " a",
     "x" * 181, "a\u202eb", "\ud800", None, 7, ["a"]],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(TransferRefused):
        safe_name(name)


@pytest.mark.parametrize("name", ["a", "notes.txt", "two words", "Grüße.pdf", "日本", "x" * 180])
def test_a_plain_name_is_taken(name: str) -> None:
    assert safe_name(name) == name


async def test_the_client_runs_without_django(tmp_path: Path) -> None:
    found = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "import sys, relay.client.__main__; print([m for m in sys.modules if "
         "m.split('.')[0] in ('django', 'channels', 'daphne', 'twisted')])"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "[]\n"
