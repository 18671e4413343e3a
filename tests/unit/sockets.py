"""A leg without a server: what ASGI gives an application for one WebSocket, in the hands of a test."""

import asyncio
from typing import Any

from relay.entry.consumers import RelayConsumer
from relay.rules.grants import SCOPE_KEY, Grant, Refused
from relay.rules.roles import Role


def grant(role: Role | None = None, subject: str | None = None) -> Grant:
    """What a token without limits allows."""
    return Grant(subject, None, role, None, None)


class Socket:
    """One WebSocket of an ASGI server; nothing is behind it.

    `room` is set while its peer reads: until then a message that is sent on it waits. `connection` is what a
    server offers that can splice.
    """

    def __init__(
        self, session_id: str, allowed: Grant | Refused | None = None, connection: Any = None
    ) -> None:
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "extensions": {"lem.relay.splice": {"connection": connection}} if connection else {},
            "url_route": {"kwargs": {"session_id": session_id}},
            SCOPE_KEY: allowed or grant(),
        }
        self.connection = connection
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received.put_nowait({"type": "websocket.connect"})
        self.sent: list[dict[str, Any]] = []
        self.accepted = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.waits = asyncio.Event()
        """Set once a message waits for room."""
        self.takes_close = True
        self.fails: Exception | None = None
        """What sending a message on it raises."""

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            if self.fails is not None:
                raise self.fails
            if not self.room.is_set():
                self.waits.set()
                await self.room.wait()
        elif message["type"] == "websocket.close" and not self.takes_close:
            await asyncio.Event().wait()
        self.sent.append(message)
        self.accepted.set()

    async def open(self) -> "asyncio.Task[None]":
        """Begin the leg; returns when it's accepted, with the task that is its application."""
        task = self.run()
        await self.accepted.wait()
        await turns()  # in which it takes its place, meets its peer and begins to read
        return task

    def run(self) -> "asyncio.Task[None]":
        """Begin the leg."""
        return asyncio.create_task(RelayConsumer()(self.scope, self.received.get, self.send))

    def sends(self, *payloads: bytes | str) -> None:
        """Its client sends messages."""
        for payload in payloads:
            kind = "bytes" if isinstance(payload, bytes) else "text"
            self.received.put_nowait({"type": "websocket.receive", kind: payload})

    def leaves(self, code: int = 1000, **details: Any) -> None:
        """Its client closes or is gone."""
        self.received.put_nowait({"type": "websocket.disconnect", "code": code, **details})

    @property
    def messages(self) -> list[bytes | str]:
        """The messages that its client was sent."""
        sends = [message for message in self.sent if message["type"] == "websocket.send"]
        return [message["bytes"] if "bytes" in message else message["text"] for message in sends]

    @property
    def close(self) -> tuple[int, str] | None:
        """Code and reason of the close frame that its client was sent last of all; None if it wasn't."""
        last = self.sent[-1]
        return (last["code"], last["reason"]) if last["type"] == "websocket.close" else None


async def turns(count: int = 30) -> None:
    """Give every task its turns: nothing here waits for anything but other tasks."""
    for _ in range(count):
        await asyncio.sleep(0)
