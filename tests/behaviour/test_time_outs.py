"""Time-outs and limits, on a server whose limits are small."""

import asyncio
import contextlib

import pytest
from websockets.exceptions import ConnectionClosedError

from tests.behaviour.clients import closed, connect, pair
from tests.rows import booked


@pytest.fixture(scope="module")
def limits() -> dict[str, str]:
    return {"SESSION_TIMEOUT": "1.5", "RELAY_MAX_MESSAGE_BYTES": "4096", "RELAY_MAX_SESSION_SECONDS": "4"}


async def test_a_leg_whose_peer_never_comes_is_told_so(small_relay, session_id):
    async with connect(small_relay, session_id) as client:
        code, reason = await closed(client)
    assert code == 4408
    assert reason.startswith("wait_timeout: ")
    record = await booked(small_relay, session_id, to_server=[], to_client=[], reason="wait_timeout")
    assert record["paired_seconds"] == 0
    assert 1.5 <= record["waiting_seconds"] == record["duration_seconds"]


async def test_a_client_that_only_sends_while_it_waits_is_told_so_too(small_relay, session_id):
    async with connect(small_relay, session_id) as client:
        await client.send("anyone?")
        assert (await closed(client))[0] == 4408
    # What nobody received is not billed.
    await booked(small_relay, session_id, to_server=[], to_client=[], reason="wait_timeout")


async def test_a_pair_without_a_frame_is_closed_as_idle(small_relay, session_id):
    async with pair(small_relay, session_id) as (client, server):
        codes = [(await closed(socket))[0] for socket in (client, server)]
    assert codes == [4412, 4412]
    await booked(small_relay, session_id, to_server=[], to_client=[], reason="idle_timeout")


async def test_frames_of_either_side_keep_a_pair_alive_up_to_its_longest_duration(small_relay, session_id):
    async def chatter(socket):
        while True:
            await socket.send("x")
            await asyncio.sleep(0.3)

    async with pair(small_relay, session_id) as (client, server):
        chattering = asyncio.create_task(chatter(client))
        received = 0
        with contextlib.suppress(ConnectionClosedError):
            async for _ in server:
                received += 1
        assert (await closed(client))[0] == (await closed(server))[0] == 4414
        chattering.cancel()
        await asyncio.gather(chattering, return_exceptions=True)
    record = await booked(small_relay, session_id, to_server=["x"] * received, to_client=[], reason="expired")
    assert 4 <= record["duration_seconds"] < 6


@pytest.mark.parametrize("payload", [b"x" * 4097, "x" * 4097, "ü" * 2049], ids=["binary", "ascii", "utf-8"])
async def test_a_message_over_the_limit_ends_the_session(small_relay, session_id, payload):
    async with pair(small_relay, session_id) as (client, server):
        await client.send("before")
        assert await server.recv() == "before"
        await client.send(payload)
        assert [(await closed(socket))[0] for socket in (client, server)] == [1009, 1009]
    await booked(small_relay, session_id, to_server=["before"], to_client=[], reason="message_too_big")


async def test_the_limit_counts_the_fragments_of_a_message_together(small_relay, session_id):
    async with pair(small_relay, session_id) as (client, server):
        await client.send([b"x" * 1500] * 3)
        assert [(await closed(socket))[0] for socket in (client, server)] == [1009, 1009]
    await booked(small_relay, session_id, to_server=[], to_client=[], reason="message_too_big")


async def test_a_message_over_the_limit_before_the_peer_came_is_refused_as_well(small_relay, session_id):
    async with connect(small_relay, session_id) as client:
        await client.send(b"x" * 4097)
        assert (await closed(client))[0] == 1009
    await booked(small_relay, session_id, to_server=[], to_client=[], reason="message_too_big")
