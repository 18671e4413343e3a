"""TCP connections through `forward` and `serve`, across a real relay."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.client.streams import WINDOW, StreamError, Streams, _reset
from tests.client.ends import SECONDS, alice, bob
from tests.client.test_command_line import Person, finish
from tests.relays import Relay, free_port

CONTENT = os.urandom(20_000_000)


class Target:
    """A TCP server that sends `CONTENT` on `get`, sends back what follows `echo`, and resets on `reset`."""

    def __init__(self) -> None:
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = await reader.readline()
        if wanted == b"reset\n":
            _reset(writer)
            return
        if wanted == b"get\n":
            for at in range(0, len(CONTENT), 65536):
                writer.write(CONTENT[at : at + 65536])
                await writer.drain()
                self.sent = at
        else:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def forwarding(
    relay: Relay, session_id: str, allowed: bool = True
) -> AsyncIterator[tuple[int, Target]]:
    """A local port that leads to a target through both peers."""
    target = Target()
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
    name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def serve() -> None:
        async with bob(relay.url, session_id) as peer:
            await Streams(peer, [name if allowed else "127.0.0.1:1"]).run()

    serving = asyncio.create_task(serve())
    async with asyncio.timeout(SECONDS):
        async with alice(relay.url, session_id) as peer:
            streams = Streams(peer)
            running = asyncio.create_task(streams.run())
            local = await asyncio.start_server(
                lambda reader, writer: streams.forward(name, reader, writer), "127.0.0.1", 0
            )
            try:
                yield local.sockets[0].getsockname()[1], target
            finally:
                local.close()
                running.cancel()
                await asyncio.wait([running])
        await serving
    server.close()


async def ask(port: int, words: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(words)
    return reader, writer


async def test_a_stalled_connection_does_not_hold_up_another(daphne: Relay, session_id: str) -> None:
    async with forwarding(daphne, session_id) as (port, _):
        stalled, stalled_writer = await ask(port, b"get\n")
        await stalled.readexactly(1)  # and no more: the reader's buffer, the sockets' and the window fill
        moving, moving_writer = await ask(port, b"get\n")
        assert hashlib.sha256(await moving.read()).digest() == hashlib.sha256(CONTENT).digest()
        rest = await stalled.read()
        assert len(rest) == len(CONTENT) - 1
        for writer in (stalled_writer, moving_writer):
            writer.close()


async def test_each_direction_ends_by_itself(daphne: Relay, session_id: str) -> None:
    async with forwarding(daphne, session_id) as (port, _):
        reader, writer = await ask(port, b"echo\n")
        writer.write(CONTENT[: 4 * WINDOW + 1])
        writer.write_eof()
        assert await reader.read() == CONTENT[: 4 * WINDOW + 1]
        writer.close()


async def test_a_reset_is_passed_on_as_one(daphne: Relay, session_id: str) -> None:
    async with forwarding(daphne, session_id) as (port, _):
        reader, writer = await ask(port, b"reset\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_target_that_is_not_allowed_is_not_reached(daphne: Relay, session_id: str) -> None:
    async with forwarding(daphne, session_id, allowed=False) as (port, target):
        reader, writer = await ask(port, b"get\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert target.sent == 0


@pytest.mark.parametrize(
    "messages",
    [[b""], [b"D\0\0\0\1x"], [b"?\0\0\0\1"], [b"O\0\0\0\2TARGET"], [b"O\0\0\0\0TARGET"],
     [b"O\0\0\0\1TARGET", b"D\0\0\0\1" + bytes(WINDOW + 1)], [b"O\0\0\0\1TARGET", b"C\0\0\0\1x"]],
)  # fmt: skip
async def test_a_peer_that_breaks_the_rules_ends_it(
    daphne: Relay, session_id: str, messages: list[bytes]
) -> None:
    server = await asyncio.start_server(Target().serve, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def misbehave() -> None:
        async with alice(daphne.url, session_id) as peer:
            for message in messages:
                await peer.send(message.replace(b"TARGET", target.encode()))
            await peer.end()

    misbehaving = asyncio.create_task(misbehave())
    with pytest.raises(StreamError):
        async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
            await Streams(peer, [target]).run()
    await asyncio.wait([misbehaving])
    server.close()


async def test_nobody_opens_a_stream_to_who_only_forwards(daphne: Relay, session_id: str) -> None:
    async def open_one() -> None:
        async with alice(daphne.url, session_id) as peer:
            await peer.send(b"O\0\0\0\1127.0.0.1:22")

    opening = asyncio.create_task(open_one())
    with pytest.raises(StreamError):
        async with asyncio.timeout(SECONDS), bob(daphne.url, session_id) as peer:
            await Streams(peer).run()
    await asyncio.wait([opening])


async def test_the_command_line_forwards(daphne: Relay, session_id: str, tmp_path: Path) -> None:
    server = await asyncio.start_server(Target().serve, "127.0.0.1", 0)
    name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    here, there = (Person(tmp_path / who, daphne.url) for who in ("alice", "bob"))
    port = free_port()
    serving = there.start("serve", "--allow", name, session_id)
    forward = here.start("forward", "-L", f"{port}:{name}", session_id)
    try:
        assert forward.stderr
        said = await asyncio.to_thread(forward.stderr.readline)
        assert said.decode() == f"127.0.0.1:{port} leads to {name}\n"
        async with asyncio.timeout(SECONDS):
            reader, writer = await ask(port, b"get\n")
            assert await reader.read() == CONTENT
            writer.close()
    finally:
        for process in (serving, forward):
            process.kill()
            finish(process)
    server.close()
    bad = await asyncio.to_thread(here.run, "forward", "-L", "nonsense", session_id)
    assert bad.returncode == 2
