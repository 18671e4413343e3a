"""Sessions in which nothing passes for longer than the relay allows, while they are in use."""

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.client import awake, files
from relay.client.connection import Closed, RelayConnection
from relay.client.disk import Unfinished
from relay.client.pipes import pipe_through
from tests.client.ends import SECONDS, alice, bob
from tests.client.test_streams import forwarding
from tests.relays import Relay, running

EVERY = 0.2
SIGNS = 10
"""Signs of life in a direction, after which more time has passed than the relay allows."""
SIGN = re.compile(rb"|P|C.{4}\0{4}", re.DOTALL)
"""That of a pipe, of files and of TCP connections."""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A relay that ends sessions after a second in which nothing passes."""
    with running("daphne spliced", tmp_path_factory.mktemp("impatient"), {"SESSION_TIMEOUT": "1"}) as relay:
        yield relay


class Silence:
    """Is over when so many signs of life were sent, which nothing else is in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(awake, "SECONDS", EVERY)
        self._over = threading.Event()
        self._sent = 0
        send = RelayConnection.send

        async def counted(peer: RelayConnection, message: bytes | memoryview) -> None:
            if message != b"Q":  # which only answers
                self._sent = self._sent + 1 if SIGN.fullmatch(message) else 0
            if self._sent >= 2 * SIGNS:  # of both sides, which are both in this process
                self._over.set()
            await send(peer, message)

        monkeypatch.setattr(RelayConnection, "send", counted)

    def wait(self) -> None:
        """In a thread."""
        assert self._over.wait(SECONDS)

    async def over(self) -> None:
        await asyncio.to_thread(self.wait)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Silence:
    return Silence(monkeypatch)


async def test_an_idle_session_is_ended_by_this_relay(impatient: Relay, session_id: str) -> None:
    async def idle(side: RelayConnection) -> None:
        async with side as peer:
            async for _ in peer:
                pass

    sides = alice(impatient.url, session_id), bob(impatient.url, session_id)
    async with asyncio.timeout(SECONDS):
        ends = await asyncio.gather(*map(idle, sides), return_exceptions=True)
    assert [isinstance(end, Closed) and end.code for end in ends] == [4412, 4412]


async def test_a_tcp_connection_that_is_silent_stays_open(
    impatient: Relay, session_id: str, silence: Silence
) -> None:
    """As an ssh session does while nobody types."""
    async with forwarding(impatient, session_id) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"echo\n")
        await silence.over()
        writer.write(b"still there?")
        writer.write_eof()
        assert await reader.read() == b"still there?"
        writer.close()


async def test_a_pipe_that_is_silent_stays_open(impatient: Relay, session_id: str, silence: Silence) -> None:
    async def pipe(side: RelayConnection, source: int, target: int) -> None:
        async with side as peer:
            await pipe_through(peer, source, target)

    (source, typed), (silent, end) = os.pipe(), os.pipe()
    (shown, target), (empty, null) = os.pipe(), os.pipe()
    async with asyncio.timeout(SECONDS):
        pipes = asyncio.gather(
            pipe(alice(impatient.url, session_id), source, null),
            pipe(bob(impatient.url, session_id), silent, target),
        )
        await silence.over()
        os.write(typed, b"still there?")
        for descriptor in (typed, end):
            os.close(descriptor)
        await pipes
    assert os.read(shown, 100) == b"still there?"
    for descriptor in (source, silent, shown, target, empty, null):
        os.close(descriptor)


@pytest.mark.parametrize("slow", ["receiver", "sender"])
async def test_a_file_of_which_much_is_there_already_takes_its_time(
    impatient: Relay,
    session_id: str,
    tmp_path: Path,
    silence: Silence,
    monkeypatch: pytest.MonkeyPatch,
    slow: str,
) -> None:
    """Hundreds of gigabytes are read and hashed before the next byte passes; here, few are read slowly."""
    read, messages = Unfinished.read, files._messages

    def read_slowly(part: Unfinished) -> int:
        silence.wait()
        return read(part)

    async def make_slowly(*arguments: Any) -> AsyncIterator[memoryview]:
        await silence.over()
        async for message in messages(*arguments):
            yield message

    if slow == "receiver":
        monkeypatch.setattr(Unfinished, "read", read_slowly)
    else:
        monkeypatch.setattr(files, "_messages", make_slowly)
    (tmp_path / "large").write_bytes(b"what it says")
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / ".large.12.part").write_bytes(b"what")

    async def send() -> None:
        async with alice(impatient.url, session_id) as peer:
            await files.send_files(peer, [tmp_path / "large"], lambda *_: None)

    async with asyncio.timeout(SECONDS):
        sending = asyncio.create_task(send())
        async with bob(impatient.url, session_id) as peer:
            await files.receive_files(peer, tmp_path / "into", lambda *_: None)
        await sending
    assert (tmp_path / "into" / "large").read_bytes() == b"what it says"
