"""What a node does with what it hears of a session's other node."""

import asyncio
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest

from relay import conf
from relay.rendezvous import Placement
from relay.rules.closing import CloseReason
from relay.rules.grants import Grant
from relay.rules.roles import Role
from relay.sessions import Port, Sessions


@pytest.mark.parametrize("on_its_way", [0.0, 0.25, 9.0], ids="{} s on its way".format)
async def test_a_node_that_hears_late_of_a_session_does_not_end_it_before_its_longest_duration(on_its_way):
    now = 1000.0
    placement = Placement(uuid4(), Role.SERVER, peer=uuid4(), peer_channel="there")
    rendezvous = Mock(join=AsyncMock(return_value=placement))
    settings = conf.RelaySettings(max_session_seconds=60)
    sessions = Sessions(settings, rendezvous, Mock(), clock=lambda: now, many_nodes=True)
    sessions._exchange = Mock(open=AsyncMock(return_value="here"), channel="here", send=AsyncMock())
    grant = Mock(spec=Grant, subject="bob", role=None, account_id=None, token_id=None)
    leg = await sessions.join("room", grant, Port(Mock(), ""))
    live, link = leg.live, leg.live.link
    sessions.end_session = Mock()
    # The first leg had waited 20 s for this one when its node heard of it, and said so.
    now += on_its_way
    hello = {"account": None, "node": "there", "started_at": "2026-11-23T12:00:00Z", "waiting_ms": 20_000}
    sessions._remote[placement.session].met(hello)
    for since_hello, ended in ((39.999, False), (40.001, True)):
        now = 1000.0 + on_its_way + since_hello
        for meter in live.meters.values():
            meter.active_at = now
        sessions._watch(live)
        assert sessions.end_session.called == ended
    assert sessions.end_session.call_args.args[1].reason is CloseReason.EXPIRED
    live.timer.cancel()
    link.close()
    sessions._checkpoint_timer.cancel()
    await asyncio.sleep(0)
