"""The queue between a socket and its application, with a bound: past it the socket isn't read any more."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from relay.rules.flow import Gauge, WaterMarks

Message = dict[str, Any]

MESSAGE_BYTES = 256
"""What a queued message costs beside its payload, in bytes (a dict of two entries and the payload's object),
so that a flood of empty messages is bounded too."""


class Inbox:
    """Messages that the server has taken from one socket and the application has not.

    `pause` is called when they are more bytes than the high mark, `resume` when they are down to the low
    mark: what they hold back is the reading of that socket. The queue holds at most the high mark and one
    message, as long as its feeder stops at once.
    """

    __slots__ = ("_gauge", "_pause", "_queue", "_resume", "_waiting", "taken")

    def __init__(self, marks: WaterMarks, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._gauge = Gauge(marks)
        self._pause = pause
        self._resume = resume
        self._queue: deque[tuple[int, Message]] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self.taken = 0
        """How many messages the application has taken so far: who counts again sees whether it works."""

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Message, size: int) -> None:
        """Queue a message of `size` bytes of payload."""
        size += MESSAGE_BYTES
        self._queue.append((size, message))
        if self._gauge.add(size):
            self._pause()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def get(self) -> Message:
        """The next message: the application's `receive`. One caller at a time."""
        while not self._queue:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        size, message = self._queue.popleft()
        self.taken += 1
        if self._gauge.remove(size):
            self._resume()
        return message
