"""Nobody can make the relay's process grow: who sends faster than its peer reads is held back by TCP."""

import asyncio
import contextlib
import hashlib
import itertools
import os

import pytest

from tests.memory import KIB, MIB, BareLeg, frame, held_back, watching
from tests.relays import running
from tests.tokens import token

OFFERED = 1024 * MIB
"""What a sender has to send: far more than it ever gets rid of."""

IN_THE_KERNEL = 128 * MIB
"""What the kernel may hold of it between a sender and its peer, outside of any process: mostly the two
buffers of the relay, which Linux lets grow to 32 MiB (received) and 4 MiB (to be sent)."""

ALLOWED = 8 * MIB
"""Growth of the process over its size when paired."""

ALLOWED_EACH = 1 * MIB
"""And beside that for each of many pairs."""

MESSAGES_HELD = {"daphne spliced": 0, "daphne": 4, "uvicorn": 5}
"""Where messages are assembled before they go on, a pair holds whole ones: in the server's receiving, in its
queue, in the relay's hand, in the server's sending. In uvicorn's receiving it is two, while the websockets
library cuts a frame out of its buffer and unmasks the copy (seen with fifty pairs: 241 to 290 MB). Only the
splice never holds one."""

LITTLE = {"daphne spliced": 16 * KIB, "daphne": 16 * KIB, "uvicorn": MIB}
"""What a slow reader takes ten times a second. ASGI doesn't show what the kernel has sent, only that it has
room again, and a socket has that when a third of its buffer (of up to 4 MiB) is free: on uvicorn a reader has
to take as much in `RELAY_STALL_SECONDS`."""

DEADLINE = 60.0

ALICE, BOB = token(sub="alice"), token(sub="bob")


def allowed(server: str, count: int, size: int) -> int:
    """How much a process may grow for `count` pairs with messages of `size` bytes."""
    if count == 1:
        return ALLOWED
    return ALLOWED + count * (ALLOWED_EACH + MESSAGES_HELD[server] * size)


def endless(size: int):
    """Frames of `OFFERED` bytes altogether, many small ones at once."""
    batch = max(1, 64 * KIB // size)
    return itertools.repeat(frame(os.urandom(size)) * batch, OFFERED // size // batch)


@contextlib.asynccontextmanager
async def pairs(relay, session_id: str, count: int):
    """As many sessions, each as (sender, reader)."""
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for number in range(count):
            name = f"{session_id}.{number}"
            reader = await stack.enter_async_context(BareLeg(relay, name, BOB))
            made.append((await stack.enter_async_context(BareLeg(relay, name, ALICE)), reader))
        for sender, reader in made:  # both are there once this is
            await sender.push([frame(b"paired")])
            assert await reader.next_message() == (0x2, b"paired")
        yield made


@contextlib.asynccontextmanager
async def pushing(*senders: BareLeg, size: int):
    """Every sender pushes all it can for the length of a block."""
    tasks = [asyncio.create_task(sender.push(endless(size))) for sender in senders]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def numbered(count: int, size: int):
    """So many frames of `size` random bytes, each its own."""
    return [frame(os.urandom(size)) for _ in range(count)]


def digest_of(frames: list[bytes], size: int) -> str:
    return hashlib.sha256(b"".join(data[-size:] for data in frames)).hexdigest()


async def read_all(reader: BareLeg, count: int, size: int) -> str:
    """Read so many frames of `size` bytes; gives the digest of their payloads."""
    digest = hashlib.sha256()
    for _ in range(count):
        opcode, payload = await reader.next_message()
        assert (opcode, len(payload)) == (0x2, size)
        digest.update(payload)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 128), (1, MIB), (50, 64 * KIB), (50, MIB)],
    ids=["one pair, 128 B", "one pair, 1 MiB", "fifty pairs, 64 KiB", "fifty pairs, 1 MiB"],
)
async def test_a_peer_that_reads_nothing_stops_its_sender_and_ends_as_stalled(
    server, tmp_path, session_id, count, size
):
    # Long enough for all to be held back before the first is ended: from its close frame on, the relay reads
    # and drops what a sender still pushes until it answers (RFC 6455 section 7.1.1), which is no growth.
    with running(server, tmp_path, {"RELAY_STALL_SECONDS": "8"}) as relay:
        async with pairs(relay, session_id, count) as made, watching(relay) as watch:
            senders = [sender for sender, _ in made]
            async with asyncio.timeout(DEADLINE), pushing(*senders, size=size):
                await held_back(*senders)
                for sender in senders:
                    assert sender.taken < IN_THE_KERNEL
                codes = await asyncio.gather(*(sender.close_code() for sender in senders))
        assert codes == [4413] * count
        assert watch.grown <= allowed(server, count, size)
        for number in range(count):
            assert (await relay.session_closed(f"{session_id}.{number}"))["reason"] == "stalled"


async def test_what_a_peer_reads_late_is_all_there(server, tmp_path, session_id):
    sent = numbered(192, MIB)
    with running(server, tmp_path) as relay:
        async with pairs(relay, session_id, 1) as ((sender, reader),), watching(relay) as watch:
            pushing = asyncio.create_task(sender.push(sent))
            async with asyncio.timeout(DEADLINE):
                await held_back(sender)
                assert not pushing.done()
                assert await read_all(reader, len(sent), MIB) == digest_of(sent, MIB)
                await pushing
        assert watch.grown <= ALLOWED


@pytest.mark.parametrize("count", [1, 50], ids=["one leg", "fifty legs"])
async def test_a_leg_that_pushes_before_its_peer_came_is_held_back_and_loses_nothing(
    server, tmp_path, session_id, count
):
    size = 64 * KIB
    sent = numbered(1024, size)
    with running(server, tmp_path) as relay:
        async with contextlib.AsyncExitStack() as stack:
            legs = [
                await stack.enter_async_context(BareLeg(relay, f"{session_id}.{number}", ALICE))
                for number in range(count)
            ]
            watch = await stack.enter_async_context(watching(relay))
            pushing = [asyncio.create_task(leg.push(sent)) for leg in legs]
            async with asyncio.timeout(DEADLINE):
                await held_back(*legs)
                assert watch.grown <= allowed(server, count, size)
                peer = await stack.enter_async_context(BareLeg(relay, f"{session_id}.0", BOB))
                assert not pushing[0].done()
                assert await read_all(peer, len(sent), size) == digest_of(sent, size)
            for task in pushing:
                task.cancel()
            await asyncio.gather(*pushing, return_exceptions=True)
            assert watch.grown <= allowed(server, count, size)
            for number in range(1, count):  # nobody reads the others' sockets until their peers come, and go
                async with BareLeg(relay, f"{session_id}.{number}", BOB) as peer:
                    await peer.next_message()


async def test_a_reader_that_takes_a_little_all_the_time_is_not_stalled(server, tmp_path, session_id):
    with running(server, tmp_path, {"RELAY_STALL_SECONDS": "2"}) as relay:
        async with (
            pairs(relay, session_id, 1) as ((sender, reader),),
            pushing(sender, size=KIB),
            asyncio.timeout(DEADLINE),
        ):
            for _ in range(60):
                await reader.read(LITTLE[server])
                await asyncio.sleep(0.1)
            assert not relay.lines("session_closed")
