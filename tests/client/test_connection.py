"""Two peers across a real relay: what they say arrives whole, and whoever doesn't belong is refused."""

import asyncio
import contextlib
import os
import socket
import ssl
from pathlib import Path

import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from relay.client.connection import SENTENCES, Closed, RelayConnection, Unreachable
from relay.client.noise import Handshake, NoiseError
from relay.client.peers import Fingerprint, KnownPeers, PeerRefused, SignedClaim
from relay.client.wire import REFUSED, WireError, agree, hello
from relay.rules.closing import CloseReason
from tests.certificates import self_signed
from tests.client.ends import ALICE, OF_ALICE, OF_BOB, SECONDS, Tap, alice, bob, outcome
from tests.memory import KERNEL_BYTES
from tests.relays import Relay, running
from tests.tokens import token


async def listen(side: RelayConnection) -> list[bytes]:
    async with side as peer:
        return [message async for message in peer]


async def test_messages_of_any_size_arrive_whole_and_in_order(daphne: Relay, session_id: str) -> None:
    messages = [b"", b"hello", os.urandom(65_518), os.urandom(65_519), os.urandom(3_000_000), b"last"]
    listening = asyncio.create_task(listen(bob(daphne.url, session_id)))
    async with asyncio.timeout(SECONDS), alice(daphne.url, session_id) as peer:
        for message in messages:
            await peer.send(message)
    assert await listening == messages


async def test_both_sides_speak_at_once(daphne: Relay, session_id: str) -> None:
    async def talk(side: RelayConnection, word: bytes) -> list[bytes]:
        async with side as peer:
            sending = asyncio.gather(*(peer.send(b"%s %d" % (word, n)) for n in range(200)))
            await sending
            await peer.end()
            return [message async for message in peer]

    async with asyncio.timeout(SECONDS):
        one, two = await asyncio.gather(
            talk(alice(daphne.url, session_id), b"ping"), talk(bob(daphne.url, session_id), b"pong")
        )
    assert one == [b"pong %d" % n for n in range(200)]
    assert two == [b"ping %d" % n for n in range(200)]


async def test_both_sides_show_the_same_words_and_the_other_one_s_key(daphne: Relay, session_id: str) -> None:
    async def met(side: RelayConnection) -> tuple[str, str]:
        async with side as peer:
            return peer.words, peer.peer_fingerprint

    async with asyncio.timeout(SECONDS):
        one, two = await asyncio.gather(met(alice(daphne.url, session_id)), met(bob(daphne.url, session_id)))
    assert one == (two[0], OF_BOB)
    assert two[1] == OF_ALICE
    assert [len(word) for word in one[0].split("-")] == [5] * 8


async def test_a_wrong_fingerprint_is_refused_before_anything_passes(daphne: Relay, session_id: str) -> None:
    refusing, refused = await asyncio.gather(
        outcome(alice(daphne.url, session_id, rule=Fingerprint(OF_ALICE))),
        outcome(bob(daphne.url, session_id)),
    )
    assert isinstance(refusing, PeerRefused)
    assert isinstance(refused, Closed)
    assert refused.code == REFUSED


async def test_a_known_peer_with_another_key_is_refused_before_anything_passes(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    known = KnownPeers(tmp_path / "known_peers", "bob")
    for round_ in range(2):
        mine, _ = await asyncio.gather(
            outcome(alice(daphne.url, f"{session_id}-{round_}", rule=known)),
            outcome(bob(daphne.url, f"{session_id}-{round_}")),
        )
        assert mine == []
    stranger = {"key": ALICE, "rule": Fingerprint(OF_ALICE)}
    mine, theirs = await asyncio.gather(
        outcome(alice(daphne.url, session_id, rule=known)),
        outcome(bob(daphne.url, session_id, **stranger)),
    )
    assert isinstance(mine, PeerRefused)
    assert "HAS CHANGED" in str(mine)
    assert isinstance(theirs, Closed)
    assert known.path.read_text() == f"bob {OF_BOB}\n"


class Signer:
    """A signaling server: its key pair, and a relay that has the public half only."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "public.pem").write_bytes(self.public)
        self.environ = {
            "RELAY_JWT_ALGORITHM": "ES256", "RELAY_JWT_PUBLIC_KEY_FILE": str(folder / "public.pem")
        }  # fmt: skip

    def token(self, **claims: object) -> str:
        return token(self._private, "ES256", **claims)

    def options(self, sub: str, session_id: str, noise_key: str | None) -> dict[str, object]:
        """What a side that this signer knows connects with; without a key it has nothing to show."""
        vouching = self.token(token_type="vouching", session_id=session_id, noise_key=noise_key)
        return {
            "token": self.token(sub=sub, session_id=session_id),
            "vouching_token": vouching if noise_key else "",
            "rule": SignedClaim(self.public),
        }


async def test_tokens_signed_with_a_private_key_vouch_for_both_peers(session_id: str, tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    of_alice = signer.options("alice", session_id, OF_ALICE)
    of_bob = signer.options("bob", session_id, OF_BOB)
    with running("daphne spliced", tmp_path / "relay", signer.environ) as relay:
        both = await asyncio.gather(
            outcome(alice(relay.url, session_id, **of_alice)), outcome(bob(relay.url, session_id, **of_bob))
        )
        assert both == [[], []]
        for stranger in (
            of_bob | {"key": X25519PrivateKey.generate(), "vouching_token": ""},  # which Bob's doesn't name
            of_bob | {"vouching_token": ""},
        ):
            mine, theirs = await asyncio.gather(
                outcome(alice(relay.url, session_id, **of_alice)),
                outcome(bob(relay.url, session_id, **stranger)),
            )
            assert isinstance(mine, PeerRefused)
            assert isinstance(theirs, Closed)


async def test_what_whoever_is_in_between_is_shown_opens_nothing(session_id: str, tmp_path: Path) -> None:
    """It gets the responder's handshake payload without having proven anything."""
    signer = Signer(tmp_path)
    of_alice = signer.options("alice", session_id, OF_ALICE)
    shown = set()
    with running("daphne spliced", tmp_path / "relay", signer.environ) as relay:
        while not shown:  # until Alice's nonce is the smaller one, so that she is the responder
            meeting = asyncio.create_task(outcome(alice(relay.url, session_id, **of_alice)))
            async with await raw(relay, session_id, signer.token(sub="mallory")) as socket:
                ours = hello()
                await socket.send(ours)
                first, prologue = agree(session_id, ours, await socket.recv())
                if first:
                    mallory = Handshake(initiator=True, prologue=prologue, static=X25519PrivateKey.generate())
                    await socket.send(mallory.write())
                    shown.add(mallory.read(await socket.recv()).decode())
            assert isinstance(await meeting, Closed)
        assert shown == {of_alice["vouching_token"]}
        opening = await outcome(alice(relay.url, session_id, token=shown.pop()))
        assert isinstance(opening, Closed)
        assert opening.code == 4401


def test_the_token_that_opens_the_session_is_never_shown_to_the_peer(tmp_path: Path) -> None:
    signer = Signer(tmp_path)
    bearer = signer.token(sub="alice", session_id="demo", noise_key=OF_ALICE)
    with pytest.raises(ValueError, match="not shown"):
        alice("ws://127.0.0.1:1", "demo", token=bearer, vouching_token=bearer)


async def test_words_that_differ_refuse_the_peer_and_are_not_remembered(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    known = KnownPeers(tmp_path / "known_peers")
    shown: list[str] = []

    async def no(words: str, peer: str) -> bool:
        assert peer == OF_BOB
        shown.append(words)
        return False

    refusing, refused = await asyncio.gather(
        outcome(alice(daphne.url, session_id, rule=known, verify=no)), outcome(bob(daphne.url, session_id))
    )
    assert isinstance(refusing, PeerRefused)
    assert isinstance(refused, Closed)
    assert len(shown) == 1
    assert not known.path.exists()


async def test_a_question_about_a_peer_that_left_is_withdrawn(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """A person may take as long as they like, and would answer for whoever comes next."""
    known = KnownPeers(tmp_path / "known_peers")
    asked, withdrawn = asyncio.Event(), asyncio.Event()

    async def ask(words: str, peer: str) -> bool:
        asked.set()
        try:
            return await asyncio.Event().wait()
        finally:
            withdrawn.set()

    asking = asyncio.create_task(outcome(alice(daphne.url, session_id, rule=known, verify=ask)))
    leaving = asyncio.create_task(outcome(bob(daphne.url, session_id)))
    async with asyncio.timeout(SECONDS):
        await asked.wait()
        leaving.cancel()
        error = await asking
    assert isinstance(error, Closed)
    assert error.code == 1001
    assert withdrawn.is_set()
    assert not known.path.exists()


async def test_a_token_for_another_session_is_refused_at_once(daphne: Relay, session_id: str) -> None:
    error = await outcome(alice(daphne.url, session_id, token=token(session_id="another")))
    assert isinstance(error, Closed)
    assert error.code == 4403
    assert str(error) == SENTENCES[4403]


async def test_a_peer_of_another_session_is_refused(daphne: Relay, session_id: str) -> None:
    """As a relay would have it that joins legs of different sessions: their prologues differ."""
    stray = bob(daphne.url, session_id)
    stray._session_id = "another"
    mine, theirs = await asyncio.gather(outcome(alice(daphne.url, session_id)), outcome(stray))
    assert {type(mine), type(theirs)} == {NoiseError, Closed}


async def raw(daphne: Relay, session_id: str, bearer: str = "") -> websockets.ClientConnection:
    return await websockets.connect(
        f"{daphne.url}/relay/{session_id}",
        additional_headers={"Authorization": f"Bearer {bearer or token(sub='mallory')}"},
        compression=None,
    )


@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1", "text", b"lem-relay/2" + bytes(16), b"lem-relay/1" + bytes(15)]
)
async def test_who_speaks_something_else_is_refused(
    daphne: Relay, session_id: str, first: bytes | str
) -> None:
    async with await raw(daphne, session_id) as socket:
        await socket.send(first)
        assert isinstance(await outcome(alice(daphne.url, session_id)), WireError)


async def test_our_own_messages_reflected_are_refused(daphne: Relay, session_id: str) -> None:
    async with await raw(daphne, session_id) as socket:

        async def reflect() -> None:
            with contextlib.suppress(websockets.ConnectionClosed):
                async for message in socket:
                    await socket.send(message)

        reflecting = asyncio.create_task(reflect())
        error = await outcome(alice(daphne.url, session_id, rule=Fingerprint(OF_ALICE)))
        await reflecting
    assert isinstance(error, WireError)
    assert "reflected" in str(error)


async def test_a_peer_that_never_answers_is_given_up(daphne: Relay, session_id: str) -> None:
    async with await raw(daphne, session_id) as socket:
        await socket.send(hello())
        error = await outcome(alice(daphne.url, session_id, handshake_seconds=0.1))
    assert isinstance(error, TimeoutError)


async def test_a_peer_that_leaves_before_its_end_is_seen(daphne: Relay, session_id: str) -> None:
    async def leave() -> None:
        async with bob(daphne.url, session_id) as peer:
            await peer.send(b"one")
            await peer._socket.close(1000)  # a clean close all the same: anyone in between can make one
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    leaving = asyncio.create_task(leave())
    got = []
    with pytest.raises(Closed, match="before it was done"):  # noqa: PT012 - what came before it counts, too
        async with asyncio.timeout(SECONDS), alice(daphne.url, session_id) as peer:
            async for message in peer:
                got.append(message)
    assert got == [b"one"]
    await asyncio.wait([leaving])


async def test_a_message_larger_than_agreed_ends_the_session(daphne: Relay, session_id: str) -> None:
    async def send() -> None:
        async with bob(daphne.url, session_id) as peer:
            await peer.send(bytes(100_001))

    sending = asyncio.create_task(send())
    with pytest.raises(WireError, match="more than 100000"):
        await listen(alice(daphne.url, session_id, max_message_bytes=100_000))
    with pytest.raises(Closed):
        await sending


async def test_a_slow_reader_slows_its_sender(daphne: Relay, session_id: str) -> None:
    sent = 0

    async def send() -> None:
        nonlocal sent
        async with bob(daphne.url, session_id) as peer:
            for _ in range(1000):
                await peer.send(bytes(60_000))
                sent += 1

    sending = asyncio.create_task(send())
    async with asyncio.timeout(SECONDS), alice(daphne.url, session_id) as peer:
        # Else Linux at times lets what this kernel takes for it grow to 32 MiB, more than the bound.
        buffer = peer._socket.transport.get_extra_info("socket")
        buffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        before = -1
        while sent != before:  # until it stands
            before = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < 500
        assert sum([len(message) async for message in peer]) == 60_000_000
    await sending


async def test_a_relay_that_is_not_there_is_tried_again_until_it_is(session_id: str, tmp_path: Path) -> None:
    relay = Relay("daphne spliced", tmp_path)
    relay.manage("migrate", "--verbosity", "0")
    error = await outcome(alice(relay.url, session_id, connect_seconds=0))
    assert isinstance(error, Closed)
    assert error.code == 0
    coming = asyncio.gather(outcome(alice(relay.url, session_id)), outcome(bob(relay.url, session_id)))
    await asyncio.sleep(0)
    await asyncio.to_thread(relay.serve)
    try:
        assert await coming == [[], []]
    finally:
        relay.stop()
    relay.check_logs()


@pytest.mark.parametrize(
    ("scheme", "lasting"),
    [
        ("ws", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        ("ws", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("ws", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("wss", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ],
    ids=["another path", "no WebSocket", "not HTTP", "no TLS"],
)
async def test_what_will_not_pass_is_not_tried_again(session_id: str, scheme: str, lasting: bytes) -> None:
    """Beside what will: a balancer that has no node just now, or restarts itself."""
    passing = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    answers = [lasting, passing if scheme == "ws" else b"", b""]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        error = await outcome(alice(url, session_id, connect_seconds=10 * SECONDS))
    assert isinstance(error, Unreachable)
    assert not error.come_back
    assert str(error).startswith("can't connect to the relay: ")
    assert not answers


async def test_a_certificate_that_is_not_trusted_is_not_tried_again(session_id: str, tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=tls)
    async with server:
        address = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        error = await outcome(alice(address, session_id, connect_seconds=10 * SECONDS))
    assert isinstance(error, Unreachable)
    assert not error.come_back
    assert "certificate verify failed" in str(error)


async def test_who_waits_comes_back_when_the_relay_restarts(
    session_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay = Relay("daphne spliced", tmp_path)
    relay.start()
    async with asyncio.timeout(2 * SECONDS), Tap(relay.port) as tap:
        waiting = asyncio.create_task(outcome(alice(tap.url, session_id)))
        await tap.shows(b" 101 ")
        await asyncio.to_thread(relay.stop)
        await asyncio.to_thread(relay.serve)
        try:
            assert await outcome(bob(relay.url, session_id)) == []
            assert await waiting == []
        finally:
            relay.stop()
    assert "the relay restarts; trying again" in caplog.messages
    relay.check_logs()


def test_every_close_code_of_the_relay_has_its_words() -> None:
    own = {reason.code for reason in CloseReason} - {1000}
    assert own <= set(SENTENCES)


async def test_who_leaves_while_more_comes_than_it_reads_does_not_wait_for_the_time_out(
    daphne: Relay, session_id: str
) -> None:
    """The library behind it takes no close in once it has stopped reading."""

    async def send_for_ever() -> None:
        async with alice(daphne.url, session_id) as peer:
            while True:
                await peer.send(bytes(65_518))

    async def leave() -> None:
        async with bob(daphne.url, session_id, close_seconds=10 * SECONDS) as peer:
            waiting, stopped = peer._socket.recv_messages, asyncio.Event()
            pause = waiting.pause
            waiting.pause = lambda: (pause(), stopped.set())
            await stopped.wait()
            raise ConnectionAbortedError

    async with asyncio.timeout(SECONDS):
        left = await asyncio.gather(leave(), send_for_ever(), return_exceptions=True)
    assert [type(error) for error in left] == [ConnectionAbortedError, Closed]
