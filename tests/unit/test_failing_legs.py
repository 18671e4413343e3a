"""A leg whose own code fails ends its session: a silent hole would be worse than any close."""

import asyncio
from unittest.mock import Mock

import pytest

from relay import sessions
from relay.entry.consumers import RelayConsumer
from relay.rules.closing import CloseReason
from tests.unit.sockets import Socket


@pytest.mark.parametrize("loop", ["socket", "channel layer"])
async def test_a_loop_that_fails_ends_the_session_of_its_leg(
    here: sessions.Sessions, recorder: Mock, session_id: str, monkeypatch: pytest.MonkeyPatch, loop: str
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
            two.fails = ValueError("a mistake of ours")
            one.received.put_nowait({"type": "websocket.receive", "bytes": b"never delivered"})
        else:
            broken.set()
        with pytest.raises(ValueError, match="a mistake of ours"):  # by which the server closes it with 1011
            await failing
        await other
    assert two.sent[-1]["code"] == CloseReason.PEER_LOST.code
    record = recorder.record.call_args.args[0]
    assert (record.reason, record.bytes_client_to_server) == ("peer_lost", 0)
