"""The same over TLS, on Daphne's `ssl:` endpoint: spliced and not."""

import asyncio
import random
import ssl

import pytest

from tests.behaviour.clients import closed, drop, pair
from tests.certificates import self_signed
from tests.relays import COMMANDS, running
from tests.rows import booked


@pytest.fixture(scope="module", params=["True", "False"], ids=["spliced", "not spliced"])
def tls_relay(request, tmp_path_factory):
    key, cert = self_signed(tmp_path_factory.mktemp("tls"))
    endpoint = f"ssl:{{port}}:privateKey={key}:certKey={cert}:interface=127.0.0.1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMANDS, "daphne tls", ["daphne", "-e", endpoint, "lemcloud.asgi:application"])
        environ = {"RELAY_SPLICE": request.param}
        with running("daphne tls", tmp_path_factory.mktemp("tls-relay"), environ) as relay:
            relay.url = relay.url.replace("ws:", "wss:")
            relay.ssl = ssl.create_default_context(cafile=cert)
            yield relay


def frames() -> list[bytes | str]:
    """About 16 MiB, empty to the largest, binary and text."""
    draw = random.Random(7)
    sizes = [draw.choice((0, 1, 125, 126, 1200, 65_535, 65_536, 1024 * 1024)) for _ in range(120)]
    return [draw.randbytes(size) if draw.random() < 0.8 else "ü" * (size // 2) for size in sizes]


async def test_frames_cross_both_ways_at_once_unaltered(tls_relay, session_id):
    sent = frames()
    async with pair(tls_relay, session_id, ssl=tls_relay.ssl) as (client, server):

        async def send(socket):
            for frame in sent:
                await socket.send(frame)

        async def receive(socket):
            return [await socket.recv() for _ in sent]

        _, _, up, down = await asyncio.gather(send(client), send(server), receive(server), receive(client))
        assert up == sent
        assert down == sent
        await client.close(4321, "done")
        assert await closed(server) == (4321, "done")
    await booked(tls_relay, session_id, to_server=sent, to_client=sent, close=(4321, "done"))


async def test_a_reader_that_pauses_slows_its_sender_and_loses_nothing(tls_relay, session_id):
    sent = [random.Random(number).randbytes(500_000) for number in range(60)]
    async with pair(tls_relay, session_id, ssl=tls_relay.ssl) as (client, server):
        server.transport.pause_reading()

        async def send():
            for frame in sent:
                await client.send(frame)

        sending = asyncio.create_task(send())
        async with asyncio.timeout(20):
            while client.transport.get_write_buffer_size() == 0:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.02)
        assert not sending.done()
        server.transport.resume_reading()
        assert [await server.recv() for _ in sent] == sent
        await sending
    await booked(tls_relay, session_id, to_server=sent, to_client=[])


async def test_a_dropped_connection_closes_the_other_as_peer_lost(tls_relay, session_id):
    async with pair(tls_relay, session_id, ssl=tls_relay.ssl) as (client, server):
        await client.send("last words")
        assert await server.recv() == "last words"
        await drop(client)
        assert (await closed(server))[0] == 4410
    await booked(tls_relay, session_id, to_server=["last words"], to_client=[], reason="peer_lost")


async def test_pings_are_answered_while_frames_pass(tls_relay, session_id):
    async with pair(tls_relay, session_id, ssl=tls_relay.ssl) as (client, server):
        for _ in range(20):
            await client.send(bytes(100_000))
            answered = await client.ping()
            assert await server.recv() == bytes(100_000)
            await asyncio.wait_for(answered, 10)
    await booked(tls_relay, session_id, to_server=[bytes(100_000)] * 20, to_client=[])
