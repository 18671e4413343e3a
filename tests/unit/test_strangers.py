"""What a node answers when another one's link asks for a leg that has none here."""

import asyncio
from unittest.mock import AsyncMock, Mock
from uuid import UUID, uuid4

import pytest

from relay import conf
from relay.rendezvous import Full, Placement
from relay.rules.closing import Close, CloseReason
from relay.rules.grants import Grant, Refused
from relay.rules.roles import Role
from relay.sessions import Port, Sessions
from relay.sessions.service import REMEMBERED_ENDS


def hello(session_id: str, session: UUID) -> dict:
    """The first message of a link, from the node of the leg that came second."""
    return {
        "type": "relay.link",
        "session": session.hex,
        "to": "client",
        "from": "there",
        "hello": {"session_id": session_id, "channel": "there", "account": None},
        "asks": True,
    }


async def told(sessions: Sessions, session_id: str, session: UUID | None = None) -> list[dict]:
    """What the node sends to the one that asks."""
    exchange = Mock(send=AsyncMock())
    sessions._stranger(exchange, hello(session_id, session or uuid4()))
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
    assert [message["gone"]["reason"] for message in await told(sessions, "another")] == ["peer_lost"]
    answered.set()
    with pytest.raises(Refused):
        await joining
    del joining
    assert [message["gone"]["reason"] for message in await told(sessions, "room")] == ["peer_lost"]


@pytest.mark.parametrize(
    ("close", "told_reason", "told_code"),
    [
        (Close.by_peer(4001, "bye"), "peer_left", 4001),
        (Close.because(CloseReason.REPLACED), "replaced", 4411),
        # No pair can end as this, and the other node has one.
        (Close.because(CloseReason.WAIT_TIMEOUT), "peer_lost", 4410),
    ],
)
async def test_who_comes_to_a_session_that_has_just_ended_hears_how(close, told_reason, told_code):
    session = uuid4()
    rendezvous = Mock(join=AsyncMock(return_value=Placement(session, Role.CLIENT)))
    sessions = Sessions(conf.RelaySettings(), rendezvous, Mock(), many_nodes=True)
    sessions._exchange = Mock(open=AsyncMock(return_value="here"))
    grant = Mock(spec=Grant, subject="alice", role=None, account_id=None, token_id=None)
    leg = await sessions.join("room", grant, Port(Mock(), ""))
    sessions.gone(leg, close)
    (message,) = await told(sessions, "room", session)
    assert (message["gone"]["reason"], message["gone"]["code"]) == (told_reason, told_code)


async def test_only_so_many_ends_are_remembered():
    sessions = Sessions(conf.RelaySettings(), Mock(), Mock(), many_nodes=True)
    first, *others = [uuid4() for _ in range(REMEMBERED_ENDS + 1)]
    for session in (first, *others):
        sessions._remember(session, Close.because(CloseReason.REPLACED))
    assert first not in sessions._ends
    assert list(sessions._ends) == others
