"""A session whose place another one has taken, on another node, ends for its leg."""

import asyncio
from unittest.mock import Mock

import pytest

from relay import conf, sessions
from relay.rendezvous.memory import MemoryRendezvous
from relay.rules.grants import SCOPE_KEY, Grant
from relay.rules.roles import Role
from relay.sessions import Port, Sessions
from tests.unit.test_failing_legs import Socket

ALICE = Grant("alice", None, Role.CLIENT, None, None)


async def test_the_channel_layer_alone_tells_a_leg_that_it_is_replaced_on_another_node(
    session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendezvous, recorder = MemoryRendezvous(), Mock()  # such a rendezvous tells nobody
    here, there = (
        Sessions(conf.RelaySettings(), rendezvous, recorder, many_nodes=True),
        Sessions(conf.RelaySettings(), rendezvous, Mock(), many_nodes=True),
    )
    monkeypatch.setattr(sessions, "of_this_process", lambda: here)
    old = Socket(session_id)
    old.scope[SCOPE_KEY] = ALICE
    async with asyncio.timeout(10):
        running = old.run()
        await old.accepted.wait()
        while not here._live or not next(iter(here._live.values())).legs[Role.CLIENT].reader:  # noqa: ASYNC110
            await asyncio.sleep(0)  # it is in its group once its socket is read
        new = await there.join(session_id, ALICE, Port(Mock(), ""))
        await running
    assert (old.sent[-1]["type"], old.sent[-1]["code"]) == ("websocket.close", 4411)
    record = recorder.record.call_args.args[0]
    assert (record.reason, record.legs[0].close_code) == ("replaced", 4411)
    assert not new.over.done()
    for node in (here, there):
        node._exchange._listening.cancel()
        for live in list(node._live.values()):
            live.timer.cancel()
        node._checkpoint_timer.cancel()
