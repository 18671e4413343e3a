"""A leg whose own code fails ends its session: a silent hole would be worse than any close."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from relay import conf, sessions
from relay.closing import CloseReason
from relay.consumers import RelayConsumer
from relay.grants import SCOPE_KEY, Grant
from relay.rendezvous.memory import MemoryRendezvous


class Socket:
    """What a server is to the application, by ASGI; nothing is behind it."""

    def __init__(self, session_id: str) -> None:
        self.scope = {
            "type": "websocket",
            "extensions": {},
            "url_route": {"kwargs": {"session_id": session_id}},
            SCOPE_KEY: Grant(None, None, None, None, None),
        }
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received.put_nowait({"type": "websocket.connect"})
        self.sent: list[dict[str, Any]] = []
        self.accepted = asyncio.Event()
        self.fails = False

    async def send(self, message: dict[str, Any]) -> None:
        if self.fails and message["type"] == "websocket.send":
            raise ValueError("a mistake of ours")
        self.sent.append(message)
        self.accepted.set()

    def run(self) -> "asyncio.Task[None]":
        return asyncio.create_task(RelayConsumer()(self.scope, self.received.get, self.send))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Mock:
    recorder = Mock()
    recorder.when_safe.side_effect = lambda session, tell: tell()
    here = sessions.Sessions(conf.RelaySettings(), MemoryRendezvous(), recorder)
    monkeypatch.setattr(sessions, "of_this_process", lambda: here)
    return recorder


@pytest.mark.parametrize("loop", ["socket", "channel layer"])
async def test_a_loop_that_fails_ends_the_session_of_its_leg(
    recorder: Mock, session_id: str, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    one, two = Socket(session_id), Socket(session_id)
    if loop == "channel layer":
        broken = asyncio.Event()

        async def follow(self: RelayConsumer, leg: sessions.Leg) -> None:
            await broken.wait()
            if leg.role == "client":
                raise ValueError("a mistake of ours")
            await asyncio.Event().wait()

        monkeypatch.setattr(RelayConsumer, "_follow", follow)
    async with asyncio.timeout(10):
        failing = one.run()
        await one.accepted.wait()
        other = two.run()
        await two.accepted.wait()
        if loop == "socket":
            two.fails = True
            one.received.put_nowait({"type": "websocket.receive", "bytes": b"never delivered"})
        else:
            broken.set()
        with pytest.raises(ValueError, match="a mistake of ours"):  # by which the server closes it with 1011
            await failing
        await other
    assert two.sent[-1]["code"] == CloseReason.PEER_LOST.code
    record = recorder.record.call_args.args[0]
    assert (record.reason, record.bytes_client_to_server) == ("peer_lost", 0)
