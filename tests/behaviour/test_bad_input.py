"""Bad input gets a clear answer, loses nothing of anyone else, and leaves no traceback."""

import asyncio
import os

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from tests.behaviour.clients import closed, connect, drop, pair
from tests.behaviour.raw import RawClient
from tests.relays import running
from tests.tokens import token


@pytest.mark.parametrize(
    "bad", ["", "x" * 129, "a%2Fb", "a/b", "a%00b", "a%0Ab", "%C3%BC", "a b".replace(" ", "%20")]
)
async def test_a_session_id_outside_the_alphabet_is_refused_with_the_rule(relay, bad):
    async with connect(relay, bad) as socket:
        code, reason = await closed(socket)
    assert code == 4403
    assert "1 to 128 characters" in reason


@pytest.mark.parametrize("path", ["", "relay", "nowhere", "relays/x", "admin/"])
async def test_a_websocket_to_an_unknown_path_is_not_found(relay, path):
    with pytest.raises(InvalidStatus) as caught:
        await connect(relay, "", uri=f"{relay.url}/{path}")
    assert caught.value.response.status_code == 404


async def test_plain_http_to_a_session_is_told_to_upgrade(relay, session_id):
    async with httpx.AsyncClient(base_url=relay.http_url) as client:
        answer = await client.get(f"/relay/{session_id}", params={"token": token()})
    assert answer.status_code == 426
    assert "WebSocket" in answer.text


@pytest.mark.parametrize("path", ["/nowhere", "/health/x", "/%FF", "/a%00b"])
async def test_an_unknown_http_path_is_not_found(relay, path):
    async with httpx.AsyncClient(base_url=relay.http_url) as client:
        assert (await client.get(path)).status_code == 404


async def test_a_token_of_a_megabyte_is_refused_before_it_is_read(relay, session_id):
    huge = "x" * 1_000_000
    for where in ({"additional_headers": {"Authorization": f"Bearer {huge}"}}, {"query": huge}):
        query = f"?token={where.pop('query')}" if "query" in where else ""
        with pytest.raises((InvalidStatus, InvalidMessage, ConnectionClosed, ConnectionError)) as caught:
            await connect(relay, session_id + query, **where)
        if isinstance(caught.value, InvalidStatus):
            assert caught.value.response.status_code in (400, 414, 431)


async def test_text_that_is_not_utf8_ends_the_session(relay, session_id):
    async with RawClient(relay, session_id) as client, connect(relay, session_id) as server:
        await client.frame(0x1, b"good")
        assert await server.recv() == "good"
        await client.frame(0x1, b"\xff\xfe")
        assert (await client.close_frame())[0] == 1007
        assert (await closed(server))[0] == 4410
    assert (await relay.session_closed(session_id))["total_bytes"] == 4


@pytest.mark.parametrize(
    "head",
    [b"\xc2\x80", b"\x83\x80", b"\x8b\x80", b"\x82\x01x", b"\x80\x80"],
    ids=["reserved bit", "reserved opcode", "reserved control", "not masked", "nothing to continue"],
)
async def test_frames_that_break_the_protocol_end_the_session(relay, session_id, head):
    async with RawClient(relay, session_id) as client, connect(relay, session_id) as server:
        await relay.paired(session_id)
        await client.raw(head + b"\x00\x00\x00\x00")
        assert (await client.close_frame())[0] == 1002
        assert (await closed(server))[0] == 4410


async def test_a_client_that_opens_and_never_sends_does_not_hold_up_others(relay, session_id):
    _, writer = await asyncio.open_connection(relay.host, relay.port)
    async with pair(relay, session_id) as (client, server):
        await client.send("hi")
        assert await server.recv() == "hi"
    writer.close()
    await writer.wait_closed()


async def test_garbage_instead_of_http_is_answered_with_400(relay):
    reader, writer = await asyncio.open_connection(relay.host, relay.port)
    writer.write(os.urandom(64).replace(b"\n", b"x") + b"\r\n\r\n")
    async with asyncio.timeout(10):
        assert b" 400 " in await reader.read(100)
    writer.close()


async def test_one_that_vanishes_while_it_waits_frees_the_session_id(relay, session_id):
    async with connect(relay, session_id, token(role="client", sub="gone")) as client:
        await drop(client)
    assert (await relay.session_closed(session_id))["reason"] == "peer_lost"
    async with connect(relay, session_id, token(role="client", sub="bob")) as other:
        await (await other.ping())


async def test_one_that_vanishes_during_the_upgrade_leaves_nothing_behind(relay, session_id):
    for _ in range(20):
        _, writer = await asyncio.open_connection(relay.host, relay.port)
        writer.write(RawClient.request(relay, session_id))
        await writer.drain()
        writer.transport.abort()
    async with asyncio.timeout(20):
        # Refused only until the relay has noticed that they are gone.
        while not await admitted(relay, session_id):  # noqa: ASYNC110 - no event crosses a process
            await asyncio.sleep(0.05)


async def admitted(relay, session_id: str) -> bool:
    try:
        async with connect(relay, session_id, token(role="client")) as client:
            await (await client.ping())
            return True
    except ConnectionClosed:
        return False


@pytest.mark.parametrize("daphne", ["daphne spliced", "daphne"])
async def test_one_that_vanishes_after_more_than_the_relay_keeps_frees_the_session_id(
    daphne, tmp_path, session_id
):
    """Its socket isn't read any more, and still its end is noticed. (uvicorn has no way to tell.)"""
    # Which the next ping does; 20 seconds apart unless told.
    with running(daphne, tmp_path, options=("--ping-interval", "2")) as relay:
        async with connect(relay, session_id) as client:
            sending = asyncio.create_task(flood(client))
            async with asyncio.timeout(20):
                while client.transport.get_write_buffer_size() == 0:  # noqa: ASYNC110 - no event for it
                    await asyncio.sleep(0.02)
            await drop(client)
            await asyncio.gather(sending, return_exceptions=True)
        line = await relay.session_closed(session_id)
        assert (line["reason"], line["total_bytes"]) == ("peer_lost", 0)
        async with pair(relay, session_id) as (client, server):
            await client.send("free again")
            assert await server.recv() == "free again"


async def flood(socket) -> None:
    while True:
        await socket.send(bytes(65_536))
