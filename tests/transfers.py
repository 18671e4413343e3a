"""Transfers of which every message is checked: random frames of mixed sizes, digested at both ends."""

import asyncio
import base64
import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from tests.behaviour.clients import closed
from tests.records import check_session, recorded

END = "the end"
"""The last frame of a direction, text, and of no size that the others have."""


class Tally:
    """What one end of one direction has sent or received: SHA-256 over kinds, sizes and payloads, and counts.

    Kinds and sizes are in the digest so that moved message boundaries show as well.
    """

    def __init__(self) -> None:
        self.frames = self.nbytes = 0
        self._digest = hashlib.sha256()

    def add(self, frame: str | bytes) -> None:
        payload = frame.encode() if isinstance(frame, str) else frame
        self._digest.update(f"{type(frame).__name__} {len(payload)} ".encode())
        self._digest.update(payload)
        self.frames += 1
        self.nbytes += len(payload)

    @property
    def counts(self) -> tuple[int, int]:
        """Messages, and bytes of payload."""
        return self.frames, self.nbytes

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Tally)
            and self.counts == other.counts
            and (self._digest.digest() == other._digest.digest())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.frames} frames, {self.nbytes} bytes, {self._digest.hexdigest()[:8]}>"


def frames(seed: int, size: int, limit: int) -> Iterator[str | bytes]:
    """Frames of `size` bytes altogether: empty to `limit`, text and binary; kinds and sizes by the seed."""
    draw = random.Random(seed)
    left = size
    yield b""
    yield ""
    while left > 0:
        each = min(left, draw.choice((0, 1, 125, 126, 127, 1200, 16_384, 65_535, 65_536, limit, limit)))
        if draw.random() < 0.2:
            yield base64.b64encode(os.urandom(each * 3 // 4 + 3))[:each].decode()
        else:
            yield os.urandom(each)
        left -= each
    yield END


class Transfer:
    """`size` bytes both ways at once between the two legs of a session."""

    def __init__(self, client: Any, server: Any, size: int, limit: int) -> None:
        self.client, self.server = client, server
        self.size = size
        self._limit = limit
        self.sent = {"up": Tally(), "down": Tally()}
        self.received = {"up": Tally(), "down": Tally()}
        """By the direction: up is from the client to the server."""
        self.wait_after_bytes: Callable[[int], float] = lambda size: 0.0
        """Seconds that receivers wait after a message of that size, before they read the next one."""

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._send(self.client, "up", 1)),
            asyncio.create_task(self._send(self.server, "down", 2)),
            asyncio.create_task(self._receive(self.server, "up")),
            asyncio.create_task(self._receive(self.client, "down")),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def under_way(self) -> bool:
        """Whether anything has still to arrive."""
        return not all(task.done() for task in self._tasks)

    async def reaches(self, nbytes: float) -> None:
        """Returns when so many bytes have arrived in either direction."""
        while min(tally.nbytes for tally in self.received.values()) < nbytes:
            failed = [task.exception() for task in self._tasks if task.done() and not task.cancelled()]
            if error := next((error for error in failed if error), None):
                raise error
            await asyncio.sleep(0.005)

    async def completes(self, seconds: float) -> None:
        """Returns when all has arrived, each message once and as it was sent, and fails after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*self._tasks)
        except TimeoutError:
            raise AssertionError(f"it stands still: sent {self.sent}, received {self.received}") from None
        assert self.received == self.sent
        assert all(tally.nbytes >= self.size for tally in self.sent.values())

    async def ends(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """The close frames that client and server are sent; what arrives before them is tallied."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return await closed(self.client), await closed(self.server)

    async def _send(self, socket: Any, way: str, seed: int) -> None:
        for frame in frames(seed, self.size, self._limit):
            # First: it may have arrived before this task goes on.
            self.sent[way].add(frame)
            await socket.send(frame)
            # That may never have waited: the tasks that read have to have their turn.
            await asyncio.sleep(0)

    async def _receive(self, socket: Any, way: str) -> None:
        tally = self.received[way]
        while True:
            frame = await socket.recv()
            tally.add(frame)
            if frame == END:
                return
            if delay := self.wait_after_bytes(len(frame)):
                await asyncio.sleep(delay)


def check_record(record: dict[str, Any], transfer: Transfer) -> None:
    """The record of a session, its row or its line, says what its receivers counted."""
    for way, direction in (("up", "client_to_server"), ("down", "server_to_client")):
        counted = (record[f"frames_{direction}"], record[f"bytes_{direction}"])
        assert counted == transfer.received[way].counts, f"{direction}: {counted}, {transfer.received[way]}"


async def check_books(
    relay: Any, session_id: str, transfer: Transfer, closes: Mapping[str, tuple[int, str]]
) -> None:
    """The session's line, its row and the rows of both its legs say what its receivers counted.

    And the legs' rows say how each was told that it's over: `closes`, by role.
    """
    line = await relay.session_closed(session_id)
    row = await recorded(relay, session_id)
    check_record(line, transfer)
    check_record(row, transfer)
    check_session(row, line, closes=closes)
