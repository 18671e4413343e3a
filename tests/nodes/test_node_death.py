"""A node is killed: the peers of its legs are told, the records are right, and the session ids are free."""

import asyncio
import signal
import time

import pytest

from tests.behaviour.clients import closed, connect
from tests.nodes.cluster import pair_across
from tests.relays import Relay
from tests.tokens import token
from tests.transfers import Transfer

MIB = 1024 * 1024

NODE_SECONDS = 4.0
LINK_SECONDS = 4.0

MARGIN_SECONDS = 4.0
"""What may be added to a time-out: looking at intervals, and a busy machine."""

AT_ONCE_SECONDS = 2.0
"""Shorter than any time-out, long enough for a busy machine."""

LOST = {4410, 4415}
"""What the leg of a dead node's peer is told: peer_lost or link_lost."""

IN_THE_KERNEL = 16 * MIB
"""What the kernel may hold of what a node handed over to a socket: two buffers. A killed node's connection is
reset, and with it they are gone."""

SIZE = 1024 * MIB
"""More than ever crosses."""


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "RELAY_NODE_SECONDS": str(NODE_SECONDS),
        "RELAY_LINK_SECONDS": str(LINK_SECONDS),
        "RELAY_CLOSE_SECONDS": "2",
        "RELAY_CHECKPOINT_SECONDS": "1",  # how often the living look after the dead
    }


def kill(node: Relay) -> None:
    node.process.kill()
    node.process.wait()


async def paired(cluster, one: Relay, other: Relay, session_id: str) -> None:
    """Both get in at once, whatever was before, and have each other."""
    async with (
        asyncio.timeout(AT_ONCE_SECONDS),
        connect(one, session_id, token(sub="alice")) as client,
        connect(other, session_id, token(sub="bob")) as server,
    ):
        await client.send("together again")
        assert await server.recv() == "together again"


@pytest.mark.parametrize("dies", ["opener", "joiner"])
async def test_in_the_middle_of_a_transfer(cluster, session_id, dies):
    stays, other, _ = cluster.nodes
    with cluster.another() as mortal:
        first, second = (mortal, stays) if dies == "opener" else (stays, mortal)
        async with pair_across(cluster, first, second, session_id) as (client, server):
            survivor = server if dies == "opener" else client
            to_survivor, to_dead = ("up", "down") if dies == "opener" else ("down", "up")
            async with Transfer(client, server, SIZE, cluster.max_message_bytes) as transfer:
                await transfer.reaches(16 * MIB)
                kill(mortal)
                started = time.monotonic()
                codes = await transfer.ends()
                took = time.monotonic() - started
        code, _ = codes[1 if dies == "opener" else 0]
        assert code in LOST
        assert took < LINK_SECONDS + MARGIN_SECONDS
        assert survivor.close_code == code
        await paired(cluster, stays, other, session_id)
    line = await cluster.booked(session_id, settled=False)
    assert line["reason"] in ("peer_lost", "link_lost")
    role = "server" if dies == "opener" else "client"
    leg = await cluster.received(session_id, role, *transfer.received[to_survivor].counts)
    assert (leg["close_code"], leg["close_reason"].partition(":")[0]) == (code, line["reason"])
    opener = mortal if dies == "opener" else stays
    assert f":{opener.process.pid}:" in cluster.rows(session_id)[0]["node"]
    record = {
        "up": (line["frames_client_to_server"], line["bytes_client_to_server"]),
        "down": (line["frames_server_to_client"], line["bytes_server_to_client"]),
    }
    assert record[to_survivor] == transfer.received[to_survivor].counts
    # The dead node may have handed over more than it came to acknowledge, and its client's kernel may have
    # thrown away some of that with the connection.
    assert 0 < record[to_dead][1] <= transfer.sent[to_dead].nbytes
    assert record[to_dead][1] <= transfer.received[to_dead].nbytes + IN_THE_KERNEL


@pytest.mark.parametrize("dies", ["opener", "joiner"])
async def test_what_the_record_says_was_delivered(cluster, session_id, dies):
    """What the dead node had acknowledged is in the record that the other one writes."""
    stays = cluster.nodes[0]
    delivered = 0
    with cluster.another() as mortal:
        first, second = (mortal, stays) if dies == "opener" else (stays, mortal)
        async with pair_across(cluster, first, second, session_id) as (client, server):
            sender, receiver = (server, client) if dies == "opener" else (client, server)
            way = "server_to_client" if dies == "opener" else "client_to_server"
            for number in range(200):
                await sender.send(bytes([number]) * 1000)
                assert await receiver.recv() == bytes([number]) * 1000
                delivered += 1
            await asyncio.sleep(0.3)  # its last acknowledgement gets through; no event crosses a process
            kill(mortal)
            assert (await closed(sender))[0] in LOST
    line = await cluster.booked(session_id, settled=False)
    assert line["reason"] in ("peer_lost", "link_lost")
    await cluster.received(session_id, "server" if dies == "opener" else "client", 0, 0)
    assert line["total_bytes"] == 1000 * delivered
    assert (line[f"frames_{way}"], line[f"bytes_{way}"]) == (delivered, 1000 * delivered)


async def test_who_comes_back_in_its_role_before_its_nodes_death_is_noticed_gets_in_at_once(
    cluster, session_id
):
    stays, other, _ = cluster.nodes
    alice, bob = token(sub="alice", role="client"), token(sub="bob", role="server")
    with cluster.another() as mortal:
        async with connect(mortal, session_id, alice) as client, connect(stays, session_id, bob) as server:
            await client.send("before")
            assert await server.recv() == "before"
            kill(mortal)
            async with asyncio.timeout(AT_ONCE_SECONDS):
                new = await connect(other, session_id, alice)
                code, _ = await closed(server)
                assert code in {4411, *LOST}
                async with connect(stays, session_id, bob) as again:
                    await again.send("after")
                    assert await new.recv() == "after"
            await new.close()


async def test_a_leg_that_waited_on_a_dead_node_is_replaced_by_the_same_participant_at_once(
    cluster, session_id
):
    stays, other, _ = cluster.nodes
    alice = token(sub="alice", role="client")
    with cluster.another() as mortal:
        async with connect(mortal, session_id, alice):
            await cluster.opened(session_id)
            kill(mortal)
            async with asyncio.timeout(AT_ONCE_SECONDS):
                async with (
                    connect(stays, session_id, alice) as again,
                    connect(other, session_id, token(sub="bob", role="server")) as server,
                ):
                    await server.send("hi")
                    assert await again.recv() == "hi"


async def test_a_session_id_whose_only_leg_waited_on_a_dead_node_is_free_after_its_lease(cluster, session_id):
    stays = cluster.nodes[0]
    with cluster.another() as mortal:
        async with connect(mortal, session_id, token(sub="alice", role="client")):
            await cluster.opened(session_id)
            kill(mortal)
            started = time.monotonic()
            async with asyncio.timeout(NODE_SECONDS + MARGIN_SECONDS):
                while not await gets_in(cluster, stays, session_id):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            # Not before: until then the dead node might only have been slow.
            assert time.monotonic() - started > NODE_SECONDS / 3


async def gets_in(cluster, node: Relay, session_id: str) -> bool:
    """Whether someone else gets the place, and opens the second session of this id; refused if not."""
    async with connect(node, session_id, token(sub="mallory", role="client")) as socket:
        refused = asyncio.ensure_future(closed(socket))
        seated = asyncio.ensure_future(cluster.opened(session_id, sessions=2))
        await asyncio.wait((refused, seated), return_when=asyncio.FIRST_COMPLETED)
        if not refused.done():
            refused.cancel()
            return True
        seated.cancel()
        assert refused.result()[0] == 4409
        return False


async def test_who_joins_a_leg_of_a_dead_node_is_told_so(cluster, session_id):
    stays = cluster.nodes[0]
    with cluster.another() as mortal:
        async with connect(mortal, session_id, token(sub="alice")):
            await cluster.opened(session_id)
            kill(mortal)
            async with connect(stays, session_id, token(sub="bob")) as server:
                async with asyncio.timeout(LINK_SECONDS + MARGIN_SECONDS):
                    assert (await closed(server))[0] in LOST


@pytest.mark.parametrize("drains", ["the sender's", "the receiver's"])
async def test_a_draining_node_delivers_what_was_taken_and_both_legs_are_told_to_come_back(
    cluster, session_id, drains
):
    stays, other, _ = cluster.nodes
    frames = [bytes([number]) * 20_000 for number in range(20)]
    with cluster.another() as leaves:
        first, second = (leaves, stays) if drains == "the sender's" else (stays, leaves)
        async with pair_across(cluster, first, second, session_id) as (client, server):
            await server.send("both are in")
            assert await client.recv() == "both are in"
            for frame in frames:
                await client.send(frame)
            await asyncio.wait_for(await client.ping(), 10)  # the relay has read them all
            stopping = asyncio.create_task(asyncio.to_thread(leaves.stop, signal.SIGTERM))
            assert [await server.recv() for _ in frames] == frames
            assert [(await closed(socket))[0] for socket in (client, server)] == [1012, 1012]
        assert await stopping == 0
        line = await cluster.booked(session_id, 1012, 1012)
        assert (line["reason"], line["frames_client_to_server"]) == ("restarting", 20)
        assert line["bytes_client_to_server"] == sum(map(len, frames))
        assert line["bytes_server_to_client"] == len("both are in")
        await paired(cluster, stays, other, session_id)


@pytest.mark.parametrize("drains", ["opener", "joiner"])
async def test_a_node_that_drains_during_a_transfer_loses_nothing_that_it_recorded(
    cluster, session_id, drains
):
    stays = cluster.nodes[0]
    with cluster.another() as leaves:
        first, second = (leaves, stays) if drains == "opener" else (stays, leaves)
        async with (
            pair_across(cluster, first, second, session_id) as (client, server),
            Transfer(client, server, SIZE, cluster.max_message_bytes) as transfer,
        ):
            await transfer.reaches(8 * MIB)
            stopping = asyncio.create_task(asyncio.to_thread(leaves.stop, signal.SIGTERM))
            assert [code for code, _ in await transfer.ends()] == [1012, 1012]
        assert await stopping == 0
    line = await cluster.booked(session_id, 1012, 1012)
    assert line["reason"] == "restarting"
    up = (line["frames_client_to_server"], line["bytes_client_to_server"])
    down = (line["frames_server_to_client"], line["bytes_server_to_client"])
    assert (up, down) == (transfer.received["up"].counts, transfer.received["down"].counts)
