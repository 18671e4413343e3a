"""A slow receiver on another node: what is on its way has a bound, on both nodes and in Redis."""

import asyncio
import contextlib
import itertools
import os

import pytest
import redis.asyncio

from tests.memory import KIB, MIB, BareLeg, frame, held_back, watching
from tests.test_memory import digest_of, numbered, read_all
from tests.tokens import token

OFFERED = 1024 * MIB
"""What a sender has to send: far more than it ever gets rid of."""

WINDOW = 1 * MIB
"""What is not acknowledged of one direction at most: the default of `RELAY_LINK_WINDOW_BYTES`."""

ALLOWED = 12 * MIB
"""Growth of a node whatever the number of sessions."""

COPIES = 5
"""How often what is on its way may be in the memory of one process at once: as frames, as a batch, as the
channel layer's message, in the Redis client's buffers, for the receiver's socket."""

ALLOWED_IN_REDIS = 8 * MIB
"""Growth of Valkey's own count beside that: buffers of its connections."""

DEADLINE = 60.0


@contextlib.asynccontextmanager
async def used_memory(valkey):
    """Valkey's own count of the bytes it uses, as a list: before, and the most in the block."""
    used = []
    over = asyncio.Event()  # told, not cancelled: the client may swallow a cancellation

    async def look(client) -> None:
        while not over.is_set():
            used.append((await client.info("memory"))["used_memory"])
            await asyncio.sleep(0.02)

    async with redis.asyncio.Redis.from_url(valkey.url) as client:
        looking = asyncio.create_task(look(client))
        while not used:  # noqa: ASYNC110 - the task beside this one fills it
            await asyncio.sleep(0.01)
        most = [used[0], used[0]]
        try:
            yield most
        finally:
            over.set()
            await looking
            most[1] = max(used)


@contextlib.asynccontextmanager
async def pairs(cluster, session_id: str, count: int):
    """As many sessions from the first node to the second, each as (sender, reader)."""
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for number in range(count):
            name = f"{session_id}.{number}"
            reader = await stack.enter_async_context(
                BareLeg(cluster.nodes[1], name, token(sub="bob", role="server"))
            )
            sender = await stack.enter_async_context(
                BareLeg(cluster.nodes[0], name, token(sub="alice", role="client"))
            )
            made.append((sender, reader))
        for sender, reader in made:  # both are there once this is
            await sender.push([frame(b"paired")])
            assert await reader.next_message() == (0x2, b"paired")
        yield made


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 128), (1, MIB), (20, 64 * KIB)],
    ids=["one pair, 128 B", "one pair, 1 MiB", "twenty pairs, 64 KiB"],
)
async def test_a_receiver_that_reads_nothing_stops_its_sender_on_the_other_node(
    cluster, valkey, session_id, count, size
):
    batch = max(1, 64 * KIB // size)
    first, second, _ = cluster.nodes
    async with (
        pairs(cluster, session_id, count) as made,
        watching(first) as one,
        watching(second) as other,
        used_memory(valkey) as used,
    ):
        senders = [sender for sender, _ in made]
        endless = itertools.repeat(frame(os.urandom(size)) * batch, OFFERED // size // batch)
        pushing = [asyncio.create_task(sender.push(endless)) for sender in senders]
        try:
            async with asyncio.timeout(DEADLINE):
                await held_back(*senders)
            assert not any(task.done() for task in pushing)
        finally:
            for task in pushing:
                task.cancel()
            await asyncio.gather(*pushing, return_exceptions=True)
    on_its_way = count * COPIES * (WINDOW + size)
    assert one.grown <= ALLOWED + on_its_way
    assert other.grown <= ALLOWED + on_its_way
    assert used[1] - used[0] <= ALLOWED_IN_REDIS + count * (WINDOW + size)


async def test_what_a_receiver_on_another_node_reads_late_is_all_there(cluster, session_id):
    sent = numbered(96, MIB)
    async with pairs(cluster, session_id, 1) as ((sender, reader),):
        pushing = asyncio.create_task(sender.push(sent))
        async with asyncio.timeout(DEADLINE):
            await held_back(sender)
            assert not pushing.done()
            assert await read_all(reader, len(sent), MIB) == digest_of(sent, MIB)
            await pushing
    line = await cluster.booked(f"{session_id}.0", settled=False)  # its legs just vanish
    assert line["frames_client_to_server"] == len(sent) + 1
    assert line["bytes_client_to_server"] == len(sent) * MIB + len(b"paired")
    leg = await cluster.received(f"{session_id}.0", "server", len(sent) + 1, len(sent) * MIB + len(b"paired"))
    assert (leg["close_code"], leg["close_reason"].partition(":")[0]) in ((None, ""), (4410, "peer_lost"))
