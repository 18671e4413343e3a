"""Both legs of a session from one place, to find out whether a relay works, and how well."""

import asyncio
import time
from statistics import median
from typing import Final

from relay.client.connection import RelayConnection

ROUNDS: Final = 20
"""Round trips, of which the median counts: enough that a single slow one doesn't."""
PIECE: Final = 64 * 1024
"""Bytes of a message that measures throughput."""


async def measure(one: RelayConnection, two: RelayConnection, total: int) -> tuple[float, float]:
    """Seconds of a round trip between the peers, and bytes per second of `total` bytes one way.

    Raises what connections raise.
    """
    answering = asyncio.create_task(_answer(two))
    asking = asyncio.create_task(_ask(one, total))
    try:
        # The one that is refused says why; the other one would wait for it as for a peer that is late.
        await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_EXCEPTION)
        for leg in (asking, answering):
            if leg.done():
                leg.result()
    finally:
        for leg in (asking, answering):
            leg.cancel()
        await asyncio.gather(asking, answering, return_exceptions=True)
    return asking.result()


async def _ask(connection: RelayConnection, total: int) -> tuple[float, float]:
    async with connection as peer:
        answers = aiter(peer)
        trips = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            await peer.send(b"p")
            await anext(answers)
            trips.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for at in range(0, total, PIECE):
            await peer.send(bytes(min(PIECE, total - at)))
        await peer.send(b"p")
        await anext(answers)
        seconds = time.perf_counter() - begun
    return median(trips), total / seconds


async def _answer(connection: RelayConnection) -> None:
    async with connection as peer:
        async for message in peer:
            if message == b"p":
                await peer.send(message)
