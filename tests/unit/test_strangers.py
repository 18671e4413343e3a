"""What a node answers when another one's link asks for a leg that has none here."""

import asyncio
from unittest.mock import AsyncMock, Mock
from uuid import uuid4

import pytest

from relay import conf
from relay.grants import Grant, Refused
from relay.rendezvous import Full
from relay.sessions import Port, Sessions


def hello(session_id: str) -> dict:
    """The first message of a link, from the node of the leg that came second."""
    return {
        "type": "relay.link",
        "session": uuid4().hex,
        "to": "client",
        "from": "there",
        "hello": {"session_id": session_id, "channel": "there", "account": None},
        "asks": True,
    }


async def told(sessions: Sessions, session_id: str) -> list[dict]:
    """What the node sends to the one that asks."""
    exchange = Mock(send=AsyncMock())
    sessions._stranger(exchange, hello(session_id))
    await asyncio.sleep(0)
    return [call.args[1] for call in exchange.send.call_args_list]


async def test_a_node_says_that_a_session_is_gone_but_not_while_its_leg_is_just_being_seated():
    placing, answered = asyncio.Event(), asyncio.Event()

    async def join(*_: object) -> None:
        placing.set()
        await answered.wait()
        raise Full

    sessions = Sessions(conf.RelaySettings(), Mock(join=join), Mock(), many_nodes=True)
    sessions._exchange = Mock(open=AsyncMock(return_value="here"))
    grant = Mock(spec=Grant, subject="alice", role=None, account_id=None)
    joining = asyncio.ensure_future(sessions.join("room", grant, Port(Mock(), "")))
    await placing.wait()
    assert await told(sessions, "room") == []
    assert [message["gone"] for message in await told(sessions, "another")] == [True]
    answered.set()
    with pytest.raises(Refused):
        await joining
    del joining
    assert [message["gone"] for message in await told(sessions, "room")] == [True]
