"""Redis goes away: what needs it waits or ends with a reason, what doesn't goes on, and it all comes back."""

import asyncio
import contextlib
import time
from typing import Any

import pytest

from tests.behaviour.clients import closed, connect, pair
from tests.nodes.cluster import pair_across
from tests.nodes.probes import all_ready, becomes
from tests.transfers import Transfer, check_record

MIB = 1024 * 1024

LINK_SECONDS = 6.0
"""Half of it is what a node gives the other one to answer when Redis is back, and the channel layer looks for
Redis once a second: on a busy machine less would have it take the other one for dead."""

MARGIN_SECONDS = 4.0
"""What may be added to a time-out: looking at intervals, and a busy machine."""

WINDOW = MIB
"""What is not acknowledged of one direction at most: the default of `RELAY_LINK_WINDOW_BYTES`."""

WAYS = {"client_to_server": "up", "server_to_client": "down"}

AWAY = {"channel layer", "rendezvous"}
"""The parts of a node that need Redis, as `/ready` names them."""


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "RELAY_NODE_SECONDS": "4",
        "RELAY_LINK_SECONDS": str(LINK_SECONDS),
        "RELAY_ADMIT_SECONDS": "1.5",
    }


class Stopped:
    """Redis ends; it comes back with nothing of what it knew."""

    def __init__(self, valkey, proxy) -> None:
        self.go, self.come = valkey.stop, valkey.start


class Hung:
    """Redis answers nothing, on connections that stay open."""

    def __init__(self, valkey, proxy) -> None:
        self.go, self.come = valkey.pause, valkey.resume


class CutOff:
    """One of the two nodes can't reach Redis, the other can."""

    def __init__(self, valkey, proxy) -> None:
        self.go, self.come = proxy.cut_off, proxy.let_through


class Swallowed:
    """On the way of one of the two nodes nothing gets through, on connections that stay open."""

    def __init__(self, valkey, proxy) -> None:
        self.go, self.come = proxy.hold, proxy.release


SHORTLY = pytest.mark.parametrize(
    "redis_away", [Stopped, Swallowed], indirect=True, ids=["stopped", "swallowed"]
)
"""For what is over before any time-out: the other two ways differ from these in nothing that it meets."""


@pytest.fixture(params=[Stopped, Hung, CutOff, Swallowed], ids=lambda param: param.__name__.lower())
async def redis_away(request, valkey, proxy, cluster):
    """Has Redis away, for the third node at least, for the length of a block; all is well again after it."""

    @contextlib.asynccontextmanager
    async def away():
        way = request.param(valkey, proxy)
        await asyncio.to_thread(way.go)
        try:
            yield
        finally:
            await asyncio.to_thread(way.come)

    away.for_all = request.param in (Stopped, Hung)
    await all_ready(cluster)
    yield away
    await all_ready(cluster)


async def both_ways(client, server) -> None:
    """Once this is done, both legs are in with everything that belongs to it."""
    for one, other in ((client, server), (server, client)):
        await one.send("before")
        assert await other.recv() == "before"


async def test_a_session_on_one_node_goes_on_and_its_id_is_free_afterwards(cluster, redis_away, session_id):
    node = cluster.nodes[2]
    async with pair(node, session_id) as (client, server):
        await both_ways(client, server)
        async with redis_away():
            for number in range(50):
                await client.send(f"{number}")
                assert await server.recv() == f"{number}"
                await server.send(bytes(100_000))
                assert await client.recv() == bytes(100_000)
                await asyncio.sleep(0.02)
            await client.close(4321, "done")
            assert await closed(server) == (4321, "done")
    line = await cluster.booked(session_id, 4321, 4321)
    up = (line["frames_client_to_server"], line["bytes_client_to_server"])
    down = (line["frames_server_to_client"], line["bytes_server_to_client"])
    assert up == (51, len("before") + sum(len(f"{number}") for number in range(50)))
    assert down == (51, len("before") + 50 * 100_000)
    await all_ready(cluster)
    async with pair(cluster, session_id) as (client, server):
        await client.send("again")
        assert await server.recv() == "again"


async def test_a_session_across_nodes_waits_and_goes_on_with_nothing_lost(cluster, redis_away, session_id):
    first, _, proxied = cluster.nodes
    async with pair_across(cluster, first, proxied, session_id) as (client, server):
        async with Transfer(client, server, 24 * MIB, cluster.max_message_bytes) as transfer:
            await transfer.reaches(0.3 * transfer.size)
            async with redis_away():
                await asyncio.sleep(LINK_SECONDS / 3)
                assert transfer.under_way
            await transfer.completes(60)
        await server.close(4321, "done")
        assert await closed(client) == (4321, "done")
    check_record(await cluster.booked(session_id, 4321, 4321), transfer)


async def test_a_session_across_nodes_that_waits_too_long_ends_as_link_lost_with_one_record(
    cluster, redis_away, session_id
):
    first, _, proxied = cluster.nodes
    async with pair_across(cluster, first, proxied, session_id) as (client, server):
        async with Transfer(client, server, 64 * MIB, cluster.max_message_bytes) as transfer:
            await transfer.reaches(0.2 * transfer.size)
            async with redis_away():
                started = time.monotonic()
                codes = [code for code, _ in await transfer.ends()]
                took = time.monotonic() - started
                assert codes == [4415, 4415]
                assert took < LINK_SECONDS + MARGIN_SECONDS
        assert transfer.received["up"].nbytes < 64 * MIB
    line = await cluster.booked(session_id, 4415, 4415, settled=redis_away.for_all)
    assert line["reason"] == "link_lost"
    await cluster.received(session_id, "server", *transfer.received["up"].counts)
    await cluster.received(session_id, "client", *transfer.received["down"].counts)
    if redis_away.for_all:
        check_record(line, transfer)
    else:
        # To the node that has Redis the other one might as well be dead. If it's away for long enough, the
        # record is closed with what it had acknowledged: never more than delivered, a window less at most.
        assert line["bytes_server_to_client"] == transfer.received["down"].nbytes
        missing = transfer.received["up"].nbytes - line["bytes_client_to_server"]
        assert 0 <= missing <= WINDOW + cluster.max_message_bytes
        await all_ready(cluster)
        # What is missing is told by the other one when it's back.
        async with asyncio.timeout(20):
            while sums(cluster.rows(session_id)) != transfer_sums(transfer):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    await all_ready(cluster)
    async with pair(cluster, session_id) as (client, server):
        await client.send("again")
        assert await server.recv() == "again"


def sums(rows: list[dict[str, Any]]) -> list[int]:
    """Frames and bytes each way of all rows that have ended."""
    names = [f"{what}_{way}" for way in WAYS for what in ("frames", "bytes")]
    return [sum(row[name] for row in rows if row["timestamp"]) for name in names]


def transfer_sums(transfer: Transfer) -> list[int]:
    """The same, as its receivers counted."""
    return [count for way in WAYS.values() for count in transfer.received[way].counts]


@SHORTLY
async def test_an_idle_session_across_nodes_outlives_a_short_absence(cluster, redis_away, session_id):
    first, _, proxied = cluster.nodes
    async with pair_across(cluster, first, proxied, session_id) as (client, server):
        await both_ways(client, server)
        async with redis_away():
            await asyncio.sleep(1)
            await client.send("meanwhile")
            await server.send("meanwhile, too")
            await asyncio.sleep(1)
        async with asyncio.timeout(20):
            assert await server.recv() == "meanwhile"
            assert await client.recv() == "meanwhile, too"
    line = await cluster.booked(session_id)
    assert (line["frames_client_to_server"], line["bytes_client_to_server"]) == (2, len("beforemeanwhile"))
    assert line["bytes_server_to_client"] == len("beforemeanwhile, too")


async def test_new_sessions_are_refused_meanwhile_and_ready_says_why(cluster, redis_away, session_id):
    node = cluster.nodes[2]
    async with redis_away():
        assert (await becomes(node, 503))["failing"].keys() & AWAY
        async with connect(node, session_id) as client:
            code, reason = await closed(client)
        assert code == 1013
        assert reason.startswith("unavailable: ")
    await becomes(node, 200)
    async with pair(cluster, session_id) as (client, server):
        await client.send("now")
        assert await server.recv() == "now"


@SHORTLY
async def test_a_clean_close_while_redis_is_away_reaches_the_peer_when_it_is_back(
    cluster, redis_away, session_id
):
    first, _, proxied = cluster.nodes
    async with pair_across(cluster, first, proxied, session_id) as (client, server):
        await both_ways(client, server)
        async with redis_away():
            await client.send("last words")
            await client.close(4321, "bye")
            await asyncio.sleep(1)
        async with asyncio.timeout(20):
            assert await server.recv() == "last words"
            assert await closed(server) == (4321, "bye")
    line = await cluster.booked(session_id, 4321, 4321)
    assert (line["reason"], line["frames_client_to_server"]) == ("peer_left", 2)
    assert line["bytes_client_to_server"] == len("beforelast words")
