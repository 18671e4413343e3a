"""Frames cross between nodes exactly once, whatever happens to Redis, to the way to it, or to a node."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest

from tests.behaviour.clients import closed
from tests.nodes.cluster import pair_across
from tests.nodes.proxy import Faults
from tests.relays import Relay
from tests.transfers import Transfer, check_record

MIB = 1024 * 1024

SIZE = 64 * MIB
"""Bytes of payload in each direction."""

PAUSE_SECONDS = 5.0
"""How long something stands still: shorter than `RELAY_LINK_SECONDS`."""

DEADLINE = 100.0


@contextlib.asynccontextmanager
async def transfer(
    cluster, first: Relay, second: Relay, session_id: str, size: int = SIZE
) -> AsyncIterator[Transfer]:
    """A transfer between legs on two nodes, which has to come to its end and to be booked right."""
    async with pair_across(cluster, first, second, session_id) as (client, server):
        async with Transfer(client, server, size, cluster.max_message_bytes) as both_ways:
            yield both_ways
            await both_ways.completes(DEADLINE)
        await client.close(4321, "done")
        assert await closed(server) == (4321, "done")
    line = await cluster.booked(session_id, 4321, 4321)
    assert line["reason"] == "peer_left"
    assert {leg["close_reason"] for leg in cluster.rows(session_id)[0]["legs"]} == {"done"}
    check_record(line, both_ways)


async def test_undisturbed(cluster, session_id):
    first, second, _ = cluster.nodes
    async with transfer(cluster, first, second, session_id):
        pass


async def test_undisturbed_over_the_core_channel_layer(cluster, session_id):
    with (
        cluster.another(RELAY_CHANNEL_LAYER="core") as first,
        cluster.another(RELAY_CHANNEL_LAYER="core") as second,
    ):
        async with transfer(cluster, first, second, session_id):
            pass


async def test_redis_is_restarted_and_has_forgotten_everything(cluster, valkey, session_id):
    first, second, _ = cluster.nodes
    async with transfer(cluster, first, second, session_id) as both_ways:
        await both_ways.reaches(0.25 * both_ways.size)
        await asyncio.to_thread(valkey.stop)
        await asyncio.to_thread(valkey.start)
        assert both_ways.under_way


async def test_redis_hangs_for_a_while(cluster, valkey, session_id):
    first, second, _ = cluster.nodes
    async with transfer(cluster, first, second, session_id) as both_ways:
        await both_ways.reaches(0.25 * both_ways.size)
        valkey.pause()
        await asyncio.sleep(PAUSE_SECONDS)
        valkey.resume()
        assert both_ways.under_way


async def test_the_connections_of_a_node_to_redis_are_cut_again_and_again(cluster, proxy, session_id):
    first, _, proxied = cluster.nodes
    before = proxy.cut
    async with transfer(cluster, first, proxied, session_id) as both_ways:
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            await both_ways.reaches(share * both_ways.size)
            await asyncio.to_thread(proxy.cut_connections)
            assert both_ways.under_way
    assert proxy.cut >= before + 5


@pytest.mark.parametrize(
    ("faults", "size"),
    [
        (Faults(drop=0.05), SIZE // 4),
        (Faults(duplicate=0.2), SIZE),
        (Faults(jitter_seconds=0.05), SIZE // 4),
        (Faults(drop=0.03, duplicate=0.1, jitter_seconds=0.01), SIZE // 4),
    ],
    # Each loss and each delay costs a round of waiting: a quarter of the size is long enough with them.
    ids=["drops", "duplicates", "delays", "all of it"],
)
async def test_the_way_to_redis(cluster, proxy, session_id, faults, size):
    first, _, proxied = cluster.nodes
    dropped, duplicated = proxy.dropped, proxy.duplicated
    async with transfer(cluster, first, proxied, session_id, size) as both_ways:
        proxy.faults = faults
        try:
            await both_ways.completes(DEADLINE)
        finally:
            proxy.faults = Faults()
    assert (proxy.dropped > dropped) == (faults.drop > 0)
    assert (proxy.duplicated > duplicated) == (faults.duplicate > 0)


async def test_the_receivers_read_slowly(cluster, session_id):
    first, second, _ = cluster.nodes
    async with transfer(cluster, first, second, session_id, SIZE // 2) as both_ways:
        # 8 MiB a second.
        both_ways.wait_after_bytes = lambda size: size / (8 * MIB)
        await both_ways.reaches(0.5 * both_ways.size)
        assert both_ways.under_way


@pytest.mark.parametrize("which", [0, 1], ids=["that opened the session", "that joined second"])
async def test_a_node_hangs_for_a_while(cluster, session_id, which):
    first, second, _ = cluster.nodes
    async with transfer(cluster, first, second, session_id) as both_ways:
        await both_ways.reaches(0.25 * both_ways.size)
        process = (first, second)[which].process
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            process.send_signal(signal.SIGCONT)
        assert both_ways.under_way
