"""What may come at any time beside files: text of a person, and probes."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from relay.client.connection import RelayConnection
from relay.client.files import TransferBroken, receive_files, send_files
from tests.client.ends import SECONDS, alice, bob
from tests.client.test_command_line import PersonOfBob, finish
from tests.relays import Relay


def silent(name: str, done: int, size: int) -> None:
    pass


async def test_who_receives_hears_the_sender_and_answers_its_probes(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    heard: list[str] = []

    async def receive() -> list[Path]:
        async with bob(daphne.url, session_id) as peer:
            return await receive_files(peer, tmp_path, silent, heard.append)

    receiving = asyncio.create_task(receive())
    async with asyncio.timeout(SECONDS), alice(daphne.url, session_id) as peer:
        answers = aiter(peer)
        await peer.send(b"Tgr\xc3\xbc\xc3\x9fe")
        await peer.send(b'J{"name": "a", "size": 4}')
        assert await anext(answers) == b'J{"have": 0}'
        await peer.send(b"Dab")
        for body in (b"", b"1", bytes(16)):
            await peer.send(b"P" + body)
            assert await anext(answers) == b"Q" + body
        await peer.send(b"Qnobody asked")
        await peer.send(b"Tin the middle \xff")
        await peer.send(b"Dcd")
        await peer.send(b'J{"sha256": "%s"}' % hashlib.sha256(b"abcd").hexdigest().encode())
        assert await anext(answers) == b'J{"done": true}'
    assert await receiving == [tmp_path / "a"]
    assert heard == ["grüße", "in the middle \ufffd"]


async def test_who_sends_hears_the_receiver_and_answers_its_probes(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """Also in the middle of a file, of which the receiver takes nothing meanwhile."""
    content = os.urandom(30_000_000)
    (tmp_path / "large").write_bytes(content)
    heard: list[str] = []

    async def send() -> None:
        async with alice(daphne.url, session_id) as peer:
            await send_files(peer, [tmp_path / "large"], silent, heard.append)

    sending = asyncio.create_task(send())
    got = bytearray()
    async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
        answered = refused = 0
        async for message in peer:
            match message[:1]:
                case b"J":
                    match json.loads(message[1:]):
                        case {"refused": _}:
                            refused += 1
                        case {"name": "large"}:
                            await peer.send(b"Tbefore")
                            await peer.send(b'J{"have": 0}')
                            await peer.send(b"Pprobe")
                            await peer.send(b'J{"name": "b", "size": 0}')
                        case {"sha256": digest}:
                            assert digest == hashlib.sha256(got).hexdigest()
                            await peer.send(b"Tafter")
                            await peer.send(b'J{"done": true}')
                case b"D":
                    got += message[1:]
                case b"Q":
                    assert message == b"Qprobe"
                    answered = len(got)
    await sending
    assert got == content
    assert answered < len(content)
    assert refused == 1
    assert heard == ["before", "after"]


@pytest.mark.parametrize("bad", [b"P" + bytes(17), b"X", b""])
async def test_anything_else_is_not_the_protocol(
    daphne: Relay, session_id: str, tmp_path: Path, bad: bytes
) -> None:
    async def receive() -> None:
        async with bob(daphne.url, session_id) as peer:
            await receive_files(peer, tmp_path, silent)

    async def misbehave(side: RelayConnection) -> None:
        async with side as peer:
            await peer.send(bad)

    async with asyncio.timeout(SECONDS):
        told = await asyncio.gather(
            receive(), misbehave(alice(daphne.url, session_id)), return_exceptions=True
        )
    assert isinstance(told[0], TransferBroken)


def test_the_command_line_prints_what_the_peer_says_without_its_control_characters(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    async def say() -> None:
        async with alice(daphne.url, session_id) as peer:
            await peer.send(b"Thello \x1b[31mred\nline")

    receiving = PersonOfBob(tmp_path / "bob", daphne.url, session_id=session_id).start("receive")
    asyncio.run(say())
    received = finish(receiving)
    assert received.returncode == 0, received.stderr
    assert received.stderr == b"peer: hello ?[31mred?line\n"
