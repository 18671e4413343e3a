"""The main job on real input: 256 MiB of random bytes both ways at once, in frames of mixed sizes."""

import asyncio
import base64
import hashlib
import os
import random

import pytest

from tests.behaviour.clients import closed, pair

SIZE = 256 * 1024 * 1024
"""Bytes of payload in each direction."""


def frames(seed: int, limit: int):
    """Frames of `SIZE` bytes altogether: empty to the largest, text and binary, the same for a seed."""
    draw = random.Random(seed)
    left = SIZE
    yield b""
    yield ""
    while left > 0:
        size = min(left, draw.choice((0, 1, 125, 126, 127, 1200, 16_384, 65_535, 65_536, limit, limit)))
        if draw.random() < 0.2:
            yield base64.b64encode(os.urandom(size * 3 // 4 + 3))[:size].decode()
        else:
            yield os.urandom(size)
        left -= size


async def send_all(socket, seed: int, limit: int) -> tuple[str, int, int]:
    """Send all frames of a seed; gives the SHA-256 over kinds, sizes and payloads, and the counts."""
    digest, count, total = hashlib.sha256(), 0, 0
    for frame in frames(seed, limit):
        total += add(digest, frame)
        count += 1
        await socket.send(frame)
    await socket.send("end")
    return digest.hexdigest(), count + 1, total + 3


async def receive_all(socket) -> tuple[str, int, int]:
    digest, count, total = hashlib.sha256(), 0, 0
    async for frame in socket:
        count += 1
        if frame == "end":
            return digest.hexdigest(), count, total + 3
        total += add(digest, frame)
    raise AssertionError("the connection ended early")


def add(digest, frame) -> int:
    """Add kind, size and payload, so that moved frame boundaries and changed kinds show as well."""
    payload = frame.encode() if isinstance(frame, str) else frame
    digest.update(f"{type(frame).__name__} {len(payload)} ".encode())
    digest.update(payload)
    return len(payload)


@pytest.mark.timeout(300)
async def test_256_mib_cross_both_ways_at_once_unaltered(relay, session_id):
    limit = relay.max_message_bytes
    async with pair(relay, session_id) as (client, server):
        sent_up, sent_down, got_up, got_down = await asyncio.gather(
            send_all(client, 1, limit), send_all(server, 2, limit), receive_all(server), receive_all(client)
        )
        await client.close()
        await closed(server)
    assert got_up == sent_up
    assert got_down == sent_down
    assert sent_up[2] >= SIZE
    record = await relay.session_closed(session_id)
    assert (record["frames_client_to_server"], record["bytes_client_to_server"]) == sent_up[1:]
    assert (record["frames_server_to_client"], record["bytes_server_to_client"]) == sent_down[1:]
