"""Nothing of what two peers say is to be seen by the relay: not in what its processes receive and send, not
in Valkey, not in the database, not in a file. What a peer without encryption says is: so the taps do see."""

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import redis.asyncio
import websockets

from tests.client.ends import ALICE, BOB, SECONDS, Tap, alice, bob
from tests.databases import Postgres
from tests.nodes.cluster import Cluster
from tests.relays import Relay
from tests.tokens import token

PLAIN = b"said in the clear"
TIMES, LENGTH = 50, 48_000
"""Messages that cross, and their bytes."""


def contents(folder: Path) -> bytes:
    """All that is in the files of a folder, however deep."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def whisper(one: str, two: str, session_id: str, secret: bytes) -> None:
    """Alice, at the address `one`, says the secret to Bob at `two` many times, and he does to her."""
    message = (secret * LENGTH)[:LENGTH]

    async def answer() -> list[bytes]:
        async with bob(two, session_id) as peer:
            await peer.send(message)
            return [said async for said in peer]

    answering = asyncio.create_task(answer())
    async with alice(one, session_id) as peer:
        assert await anext(aiter(peer)) == message
        for _ in range(TIMES):
            await peer.send(message)
    assert await answering == [message] * TIMES


async def say_in_the_clear(one: str, two: str, session_id: str) -> None:
    """The same without encryption."""
    headers = {"Authorization": f"Bearer {token(sub='carol')}"}
    first, second = (
        websockets.connect(f"{url}/relay/{session_id}", additional_headers=headers, compression=None)
        for url in (one, two)
    )
    async with first as sender, second as receiver:
        await sender.send(PLAIN)
        assert await receiver.recv() == PLAIN
        await receiver.send(PLAIN)  # each sees it in what it receives: what clients send is masked
        assert await sender.recv() == PLAIN


def check_hidden(secret: bytes, *places: bytes) -> None:
    """Neither what was said nor a key that would open it is in any of the places."""
    for place in places:
        for hidden in (secret, ALICE.private_bytes_raw(), BOB.private_bytes_raw()):
            assert hidden not in place
            assert hidden.hex().encode() not in place


async def test_nothing_of_the_peers_is_to_be_seen_in_the_relay(session_id: str, tmp_path: Path) -> None:
    relay = Relay("daphne spliced", tmp_path)
    relay.start()
    secret = os.urandom(24).hex().encode()
    try:
        async with asyncio.timeout(SECONDS), Tap(relay.port) as tap:
            await whisper(tap.url, tap.url, session_id, secret)
            assert PLAIN not in tap.seen
            await say_in_the_clear(tap.url, tap.url, f"{session_id}-plain")
        await relay.session_closed(session_id)
    finally:
        relay.stop()
    assert len(tap.seen) > 2 * TIMES * LENGTH, "the tap saw both directions of both legs"
    assert PLAIN in tap.seen
    stored = contents(tmp_path)
    assert session_id.encode() in stored
    check_hidden(secret, bytes(tap.seen), stored)
    relay.check_logs()


async def values(url: str) -> bytes:
    """All that a Valkey server holds now, keys and values."""
    async with redis.asyncio.from_url(url) as valkey:
        await valkey.config_set("rdbcompression", "no")  # or `dump` would compress
        keys = [key async for key in valkey.scan_iter()]
        return b"".join([key + (await valkey.dump(key) or b"") for key in keys])


async def test_nothing_of_the_peers_is_to_be_seen_between_two_nodes(
    redis_url: str, postgres: Postgres, session_id: str, tmp_path: Path
) -> None:
    """Where frames pass Valkey, and where the database is away, so that records are kept in files."""
    secret = os.urandom(24).hex().encode()
    valkey_port = urlsplit(redis_url).port
    assert valkey_port
    database_url = postgres.create(f"tap-{uuid4().hex[:8]}")
    held = []

    async def look() -> None:
        while True:
            held.append(await values(redis_url))
            await asyncio.sleep(0.05)

    async with asyncio.timeout(3 * SECONDS), Tap(valkey_port) as valkey:
        cluster = Cluster(tmp_path, [valkey.url.replace("ws:", "redis:")] * 2, database_url)
        await asyncio.to_thread(cluster.start)
        try:
            first, second = cluster.nodes
            async with Tap(first.port) as one, Tap(second.port) as two:
                looking = asyncio.create_task(look())
                await whisper(one.url, two.url, session_id, secret)
                assert PLAIN not in valkey.seen
                await asyncio.to_thread(postgres.stop)
                try:
                    await whisper(one.url, two.url, f"{session_id}-away", secret)
                    while f"{session_id}-away".encode() not in (spooled := spools(tmp_path)):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                finally:
                    await asyncio.to_thread(postgres.start)
                await cluster.session_closed(f"{session_id}-away")
                looking.cancel()
                await asyncio.wait([looking])
                await say_in_the_clear(one.url, two.url, f"{session_id}-plain")
        finally:
            await asyncio.to_thread(cluster.stop)
    assert len(valkey.seen) > 2 * TIMES * LENGTH, "the frames did pass Valkey"
    for tap in (one, two, valkey):
        assert PLAIN in tap.seen
    kept, stored = b"".join(held), contents(tmp_path) + contents(postgres.folder / "data")
    for place in (kept, stored):
        assert session_id.encode() in place
    check_hidden(secret, bytes(one.seen), bytes(two.seen), bytes(valkey.seen), kept, spooled, stored)
    cluster.check_books()


def spools(folder: Path) -> bytes:
    return b"".join(contents(spool) for spool in folder.glob("*/spool"))
