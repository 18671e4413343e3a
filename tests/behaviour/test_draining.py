"""What SIGTERM and SIGINT do: sessions end as `restarting`, nothing is lost, no record is missing."""

import asyncio
import contextlib
import signal
import time

import pytest

from tests.behaviour.clients import closed, connect, pair
from tests.relays import running
from tests.rows import booked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopping_relay_tells_everyone_to_come_back_and_writes_every_record(
    server, number, session_id, tmp_path
):
    with running(server, tmp_path) as relay:
        async with pair(relay, session_id) as (client, other), connect(relay, f"{session_id}.alone") as alone:
            await client.send("before")
            assert await other.recv() == "before"
            stopping = asyncio.create_task(asyncio.to_thread(relay.stop, number))
            assert {(await closed(socket))[0] for socket in (client, other, alone)} == {1012}
        # uvicorn repeats the signal once it has shut down in order (for its parent to see).
        assert await stopping in ((0,) if "daphne" in server else (0, -number))
        for name, sent in ((session_id, ["before"]), (f"{session_id}.alone", [])):
            await booked(relay, name, to_server=sent, to_client=[], reason="restarting")


async def test_what_was_taken_is_delivered_before_the_session_ends(session_id, tmp_path):
    frames = [bytes([number]) * 20_000 for number in range(20)]
    with running("daphne spliced", tmp_path) as relay:
        async with pair(relay, session_id) as (client, other):
            for frame in frames:
                await client.send(frame)
            await asyncio.wait_for(await client.ping(), 10)  # the relay has read them all
            stopping = asyncio.create_task(asyncio.to_thread(relay.stop))
            assert [await other.recv() for _ in frames] == frames
            assert (await closed(other))[0] == 1012
        assert await stopping == 0
        await booked(relay, session_id, to_server=frames, to_client=[], reason="restarting")


async def test_live_sessions_go_on_while_a_long_drain_lasts_and_new_ones_are_refused(session_id, tmp_path):
    limits = {"RELAY_DRAIN_SECONDS": "60", "RELAY_CLOSE_SECONDS": "1"}
    with running("daphne spliced", tmp_path, limits) as relay:
        async with pair(relay, session_id) as (client, other):
            stopping = asyncio.create_task(asyncio.to_thread(relay.stop))
            async with asyncio.timeout(20):
                while True:  # until nobody new gets in
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection(relay.host, relay.port)
                        writer.close()
                        await asyncio.sleep(0.02)
                        continue
                    break
            await client.send("still here")
            assert await other.recv() == "still here"
            assert not stopping.done()
            await client.close(1000)
            assert (await closed(other))[0] == 1000
        # With the last session gone nothing is left to wait for.
        assert await stopping == 0
        await booked(relay, session_id, to_server=["still here"], to_client=[], close=(1000, ""))


async def test_a_second_signal_ends_it_at_once(session_id, tmp_path):
    with running("daphne spliced", tmp_path, {"RELAY_DRAIN_SECONDS": "60"}) as relay:
        async with pair(relay, session_id) as (client, other):
            relay.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                while "draining" not in relay.output():  # noqa: ASYNC110 - no event crosses a process
                    await asyncio.sleep(0.02)
            started = time.monotonic()
            relay.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(relay.process.wait, 20)
            assert status == 128 + signal.SIGTERM
            assert time.monotonic() - started < 20
            for socket in (client, other):
                assert (await closed(socket))[0] in (1006, 1012)


async def test_a_peer_that_reads_nothing_does_not_hold_up_the_end(session_id, tmp_path):
    limits = {"RELAY_DRAIN_SECONDS": "2", "RELAY_CLOSE_SECONDS": "0.5"}
    with running("daphne spliced", tmp_path, limits) as relay:
        async with pair(relay, session_id) as (client, other):
            other.transport.pause_reading()
            sending = asyncio.create_task(_flood(client))
            async with asyncio.timeout(20):
                while client.transport.get_write_buffer_size() == 0:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
            assert await asyncio.to_thread(relay.stop) == 0
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            other.transport.abort()
        await booked(relay, session_id, to_client=[], reason="restarting")


async def _flood(socket):
    while True:
        await socket.send(bytes(65536))
