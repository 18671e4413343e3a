"""Two nodes end the same session in the same moment: one row, one line, and the figures of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import psycopg
import pytest
import redis.asyncio

from tests.nodes.cluster import pair_across
from tests.relays import START_SECONDS, Relay

SESSIONS = 40

AT_ONCE = 10


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"RELAY_NODE_SECONDS": "4", "RELAY_LINK_SECONDS": "4", "RELAY_CHECKPOINT_SECONDS": "1"}


async def test_both_legs_leave_their_nodes_at_the_same_moment(cluster, session_id):
    one, other, _ = cluster.nodes
    few = asyncio.Semaphore(AT_ONCE)

    async def meet(number: int) -> None:
        async with few, pair_across(cluster, one, other, f"{session_id}.{number}") as (client, server):
            for _ in range(number % 5):
                await client.send(bytes(number))
                await server.recv()
            await server.send("thanks")
            await client.recv()
            await asyncio.gather(client.close(), server.close())

    await asyncio.gather(*(meet(number) for number in range(SESSIONS)))
    for number in range(SESSIONS):
        line = await cluster.booked(f"{session_id}.{number}", 1000, 1000)
        assert line["reason"] == "peer_left"
        up = (line["frames_client_to_server"], line["bytes_client_to_server"])
        down = (line["frames_server_to_client"], line["bytes_server_to_client"])
        assert (up, down) == ((number % 5, number % 5 * number), (1, len("thanks")))


@pytest.mark.parametrize("dies", ["opener", "joiner"])
async def test_a_node_dies_while_the_legs_on_the_other_one_leave(cluster, session_id, dies):
    stays = cluster.nodes[0]
    with cluster.another() as mortal:
        first, second = (mortal, stays) if dies == "opener" else (stays, mortal)
        async with AsyncExitStack() as stack:

            async def meet(number: int):
                across = pair_across(cluster, first, second, f"{session_id}.{number}")
                client, server = await stack.enter_async_context(across)
                await client.send(bytes(100))
                await server.recv()
                await server.send(bytes(200))
                await client.recv()
                return server if dies == "opener" else client

            staying = [await meet(number) for number in range(AT_ONCE)]
            await all_legs_are_recorded(cluster, *(f"{session_id}.{n}" for n in range(AT_ONCE)))
            leaving = [asyncio.ensure_future(leg.close()) for leg in staying]
            await asyncio.sleep(0)  # their close frames are on their way
            await asyncio.to_thread(kill, mortal)
            await asyncio.gather(*leaving)
    to_the_one_that_stays = ("server_to_client", 200) if dies == "joiner" else ("client_to_server", 100)
    to_the_dead = ("client_to_server", 100) if dies == "joiner" else ("server_to_client", 200)
    for number in range(AT_ONCE):
        name = f"{session_id}.{number}"
        line = await cluster.booked(name, settled=False)
        assert line["reason"] in ("peer_left", "peer_lost", "link_lost")
        way, nbytes = to_the_one_that_stays
        assert (line[f"frames_{way}"], line[f"bytes_{way}"]) == (1, nbytes)
        leg = await cluster.received(name, "server" if dies == "opener" else "client", 1, nbytes)
        assert (leg["close_code"], leg["close_reason"]) == (1000, "")
        way, nbytes = to_the_dead
        assert (line[f"frames_{way}"], line[f"bytes_{way}"]) in ((0, 0), (1, nbytes))


@pytest.mark.parametrize("written", [False, True], ids=["before its record is written", "after that"])
async def test_the_owner_dies_before_it_has_said_that_its_record_is_safe(
    cluster, valkey, proxy, session_id, written
):
    """The other node still knows all it takes to write the record, and writes it; or finds it written."""
    stays = cluster.nodes[0]
    sent = [bytes(100), bytes(200)]
    with cluster.another(proxy.url, RELAY_LEDGER_WRITE_SECONDS="30") as owner:
        async with pair_across(cluster, owner, stays, session_id) as (client, server):
            for frame in sent:
                await client.send(frame)
                assert await server.recv() == frame
            await server.send("thanks")
            await client.recv()
            await all_legs_are_recorded(cluster, session_id)
            with closing(psycopg.connect(cluster.database_url)) as connection:
                connection.execute("LOCK TABLE relay_relaysession IN EXCLUSIVE MODE")
                async with published(valkey, "knows_end") as both_ends_are_known:
                    await client.close()
                    await server.close()
                    await both_ends_are_known
                if written:
                    proxy.hold()  # it can say nothing
            try:
                if written:
                    async with asyncio.timeout(START_SECONDS):
                        while not owner.lines("session_closed"):  # noqa: ASYNC110 - no event crosses a process
                            await asyncio.sleep(0.02)
                await asyncio.to_thread(kill, owner)
            finally:
                proxy.release()
    line = await cluster.booked(session_id, settled=False)
    assert line["reason"] == "peer_left"
    await cluster.received(session_id, "server", 2, 300)
    assert (line["frames_client_to_server"], line["bytes_client_to_server"]) == (2, 300)
    assert (line["frames_server_to_client"], line["bytes_server_to_client"]) == (1, len("thanks"))
    assert (line in owner.lines("session_closed")) == written
    assert len(cluster.rows(session_id)) == 1


@asynccontextmanager
async def published(valkey, word: str) -> AsyncIterator[asyncio.Task[None]]:
    """A task that is done when a message with `word` in it is published, from the beginning of the block."""
    async with redis.asyncio.Redis.from_url(valkey.url) as client, client.monitor() as monitor:

        async def listen() -> None:
            async with asyncio.timeout(START_SECONDS):
                async for seen in monitor.listen():
                    if seen["command"].startswith("PUBLISH") and word in seen["command"]:
                        return

        listening = asyncio.create_task(listen())
        try:
            yield listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def all_legs_are_recorded(cluster, *session_ids: str) -> None:
    async with asyncio.timeout(START_SECONDS):
        for session_id in session_ids:
            while len(cluster.rows(session_id)[0]["legs"]) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def kill(node: Relay) -> None:
    node.process.kill()
    node.process.wait()
