"""The queue between a socket and its application, with a bound: past it the socket isn't read any more."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from relay.flow import Gauge, WaterMarks

Message = dict[str, Any]

MESSAGE_BYTES = 128
"""What a queued message costs beside its payload, in bytes, so that a flood of empty ones is bounded too."""


class Inbox:
    """Messages that the server has taken from one socket and the application has not.

    `pause` is called when they are more bytes than the high mark, `resume` when they are down to the low
    mark: what they hold back is the reading of that socket.
    """

    __slots__ = ("_gauge", "_pause", "_queue", "_resume", "_waiting")

    def __init__(self, marks: WaterMarks, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._gauge = Gauge(marks)
        self._pause = pause
        self._resume = resume
        self._queue: deque[tuple[int, Message]] = deque()
        self._waiting: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def paused(self) -> bool:
        """Whether reading the socket is held back."""
        return self._gauge.paused

    def put(self, message: Message, size: int) -> None:
        """Queue a message of `size` bytes of payload."""
        size += MESSAGE_BYTES
        self._queue.append((size, message))
        if self._gauge.add(size):
            self._pause()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def put_nowait(self, message: Message) -> None:
        """Queue an event that carries no payload: how Daphne says `websocket.connect`."""
        self.put(message, 0)

    async def get(self) -> Message:
        """The next message: the application's `receive`. One caller at a time."""
        while not self._queue:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        size, message = self._queue.popleft()
        if self._gauge.remove(size):
            self._resume()
        return message
