"""Where a process receives the messages of its remote links: one channel of the channel layer for all.

The layer delivers at most once and may be away. What it loses the links send again; till it's back they wait.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from channels.layers import get_channel_layer

from relay.rules.roles import Role

logger = logging.getLogger(__name__)

Message = dict[str, Any]

MESSAGE_TYPE = "relay.link"
"""Type of every message between two nodes; `session` is a UUID in hex and `to` the role it's meant for."""

RETRY_SECONDS = 1.0
"""Pause before the channel layer is asked again after it failed."""

Address = tuple[str, str]
"""A session's UUID in hex and the role of the leg that a message is for."""


class Receiver(Protocol):
    """What takes the messages for one leg."""

    def receive(self, message: Message) -> None:
        """Take one message; never waits."""


class Exchange:
    """Sends and receives for the links of one process, which register here.

    `on_stranger` is called with this and a message for whom nobody is registered.
    """

    def __init__(self, on_stranger: Callable[["Exchange", Message], None]) -> None:
        self.channel = ""
        """The channel on which this process receives; known once it's `open`."""
        self._receivers: dict[Address, Receiver] = {}
        self._on_stranger = on_stranger
        self._listening: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> str:
        """Begin to receive, if that hasn't begun; gives `channel`. Raises what the channel layer raises."""
        async with self._opening:
            if self._listening is None:
                self.channel = await get_channel_layer().new_channel()
                self._listening = asyncio.create_task(self._listen())
        return self.channel

    def register(self, session: str, role: Role, receiver: Receiver) -> None:
        """From now on `receiver` takes what is for the leg `role` of `session`."""
        self._receivers[session, role] = receiver

    def unregister(self, session: str, role: Role) -> None:
        """What still comes for this leg is a stranger's."""
        self._receivers.pop((session, role), None)

    async def send(self, channel: str, message: Message) -> None:
        """Send to the process that receives on `channel`. Raises what the channel layer raises."""
        await get_channel_layer().send(channel, message)

    async def _listen(self) -> None:
        layer = get_channel_layer()
        while True:
            try:
                message = await layer.receive(self.channel)
            except Exception as error:  # noqa: BLE001 - a layer raises what its client library raises
                logger.warning("the channel layer failed, links wait: %s: %s", type(error).__name__, error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                self._dispatch(message)
            except Exception:
                # One bad message must not end all links of this process; its link sends again or ends.
                logger.exception("a message of another node can't be read")

    def _dispatch(self, message: Message) -> None:
        if message["type"] != MESSAGE_TYPE:
            return
        receiver = self._receivers.get((message["session"], message["to"]))
        if receiver is not None:
            receiver.receive(message)
        else:
            self._on_stranger(self, message)
