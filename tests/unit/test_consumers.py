"""Promises of `relay.entry.consumers` and of what it stands on: one leg, without a server or a network."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from channels.layers import get_channel_layer

from relay import sessions
from relay.entry.consumers import SUBPROTOCOL, _close_for_peer
from relay.links import Meter
from relay.rules.closing import Close, CloseReason
from relay.rules.grants import Refused
from relay.rules.roles import Role
from tests.unit.sockets import Socket, grant, turns

EMPTY_FRAMES_KEPT = 8

pytestmark = pytest.mark.timeout(20)  # what is missing here mostly hangs


@pytest.fixture
def limits() -> dict[str, Any]:
    return {
        "pending_bytes": EMPTY_FRAMES_KEPT * 128,  # see `PENDING_FRAME_BYTES`
        "max_message_bytes": 4096,
        "admit_seconds": 0.2,
        "close_seconds": 2,
    }


async def pair(session_id: str) -> tuple[Socket, Socket]:
    """Two legs that have met: the client's and the server's."""
    client, server = Socket(session_id, grant(Role.CLIENT)), Socket(session_id, grant(Role.SERVER))
    await client.open()
    await server.open()
    return client, server


def ended(recorder: Mock) -> Any:
    """The record of the session that has ended."""
    records = [call.args[0] for call in recorder.record.call_args_list]
    (closed,) = (record for record in records if record.timestamp is not None)
    return closed


# Before the peer has come


@pytest.mark.parametrize("payload", ["", b""], ids=["text", "binary"])
async def test_a_flood_of_empty_frames_before_the_peer_has_come_is_bounded(here, session_id, payload):
    client = Socket(session_id)
    client.sends(*[payload] * 100)
    await client.open()
    # The frame that crossed the bound is kept, too; the next one stays in the server's queue.
    assert client.received.qsize() == 100 - EMPTY_FRAMES_KEPT - 1
    server = Socket(session_id)
    await server.open()
    await turns(200)
    assert server.messages == [payload] * 100


async def test_what_is_kept_for_the_peer_comes_first_and_in_order(here, session_id, recorder):
    client = Socket(session_id, grant(Role.CLIENT))
    client.sends(*(b"%d" % number for number in range(5)))
    await client.open()
    client.sends(b"5")
    server = Socket(session_id, grant(Role.SERVER))
    await server.open()
    client.sends(b"6")
    await turns()
    assert server.messages == [b"%d" % number for number in range(7)]
    client.leaves(clean=True)
    await turns()
    record = ended(recorder)
    assert (record.frames_client_to_server, record.bytes_client_to_server) == (7, 7)


class Connection:
    """What a server offers that can splice; `splices` says when it works."""

    unsent_bytes = taken_bytes = 0

    def __init__(self) -> None:
        self.to: Socket
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.peer_has: list[list[bytes | str]] = []
        """What the peer's socket had been sent at each attempt to splice."""
        self.splices = False
        self.unspliced = 0

    def splice(self, peer: "Connection", meter: Meter) -> bool:
        self.peer_has.append(list(self.to.messages))
        assert peer is self.to.connection
        assert meter.frames == len(self.to.messages)
        return self.splices

    def unsplice(self) -> None:
        self.unspliced += 1


async def splicing_pair(session_id: str) -> tuple[Socket, Socket]:
    """Two sockets of a server that can splice, of which none has begun; what each sends goes to the other."""
    client, server = (Socket(session_id, grant(role), Connection()) for role in Role)
    client.connection.to, server.connection.to = server, client
    return client, server


async def test_splicing_is_tried_again_after_each_message_until_it_works(here, session_id):
    client, server = await splicing_pair(session_id)
    await client.open()
    await server.open()
    client.sends(b"one", b"two")
    await turns()
    assert client.connection.peer_has == [[], [b"one"], [b"one", b"two"]]
    client.connection.splices = True
    client.sends(b"three")
    await turns()
    client.sends(b"four")  # which a spliced socket doesn't give any more
    await turns()
    assert client.connection.peer_has[3:] == [[b"one", b"two", b"three"]]
    client.leaves(clean=True)
    await turns()
    assert (client.connection.unspliced, server.connection.unspliced) == (1, 0)


async def test_it_is_not_tried_before_a_message_is_sent_on_that_is_taken_from_the_socket(here, session_id):
    """It came while those before it waited for room: spliced, what comes later would overtake it."""
    client, server = await splicing_pair(session_id)
    server.room.clear()
    await client.open()
    client.sends(b"kept")
    await turns()
    await server.open()
    await server.waits.wait()
    client.sends(b"meanwhile")
    await turns()
    server.room.set()
    await turns()
    assert client.connection.peer_has == [[b"kept", b"meanwhile"]]


async def test_a_leg_that_is_held_back_and_vanishes_ends_its_session_where_the_server_tells(here, session_id):
    connection = Mock(ended=asyncio.get_running_loop().create_future())
    client = Socket(session_id, connection=connection)
    client.sends(*[b""] * 100)
    task = await client.open()
    assert not task.done()
    connection.ended.set_result(None)
    client.leaves(1006, clean=False)
    await task
    assert here._live == {}


async def test_a_message_over_the_limit_is_not_kept_for_the_peer(here, session_id, recorder):
    client = Socket(session_id)
    client.sends(b"x" * 4097)
    await (await client.open())
    assert client.close == (1009, "message_too_big: a message is over 4096 bytes")
    assert ended(recorder).reason == "message_too_big"


# The end


@pytest.mark.parametrize("first", ["room", "end"])
@pytest.mark.parametrize("when", ["paired", "kept"])
async def test_nothing_is_handed_over_after_the_end_of_a_session(here, session_id, recorder, when, first):
    """Neither the message that waits for room nor those behind it, however close the end and the room are."""
    client, server = Socket(session_id, grant(Role.CLIENT)), Socket(session_id, grant(Role.SERVER))
    server.room.clear()
    legs = [await client.open()]
    if when == "kept":
        client.sends(b"one", b"two")
        await turns()
    legs.append(await server.open())
    client.sends(b"one", b"two")
    await server.waits.wait()
    (live,) = here._live.values()
    if first == "room":
        server.room.set()
    here.end_session(live, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    server.room.set()
    await asyncio.gather(*legs)
    assert server.messages == []
    for socket in (client, server):
        assert socket.close == (4499, "closed_by_operator: an operator closed the session")
    record = ended(recorder)
    assert (record.frames_client_to_server, record.bytes_client_to_server) == (0, 0)


async def test_each_leg_leaves_with_its_session_and_its_record_says_with_which_close(
    here, session_id, recorder
):
    client, server = await pair(session_id)
    client.sends(b"12345", "ü")
    server.sends(b"123")
    await turns()
    client.leaves(1006)
    await turns()
    assert server.close == (4410, "peer_lost: the peer's connection dropped")
    record = ended(recorder)
    legs = {leg.role: leg for leg in record.legs}
    assert {role: (leg.bytes_received, leg.frames_received) for role, leg in legs.items()} == {
        "client": (3, 1),
        "server": (7, 2),
    }
    assert {role: (leg.close_code, leg.close_reason) for role, leg in legs.items()} == {
        "client": (None, ""),  # its connection dropped: it was told nothing
        "server": (4410, "peer_lost: the peer's connection dropped"),
    }
    assert all(leg.left_at >= record.timestamp for leg in legs.values())


@pytest.mark.parametrize("reason", [CloseReason.PEER_LOST, CloseReason.RESTARTING])
async def test_a_server_that_cancels_a_leg_ends_its_session(here, session_id, recorder, reason):
    """Ours does so when a socket is gone; others, which know no splicing, when they stop."""
    if reason is CloseReason.PEER_LOST:
        client, server = await splicing_pair(session_id)
    else:
        client, server = Socket(session_id), Socket(session_id)
    task = await client.open()
    await server.open()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert server.close == (reason.code, f"{reason}: {reason.sentence}")
    assert ended(recorder).reason == reason


async def test_a_peer_whose_socket_is_gone_ends_the_session_by_its_own_disconnect(here, session_id, recorder):
    client, server = await pair(session_id)
    server.fails = ConnectionResetError()
    client.sends(b"never delivered")
    await turns()
    assert client.close is None, "the loop of the sender doesn't know why"
    server.leaves(4001, reason="bye", clean=True)
    await turns()
    assert client.close == (4001, "bye")
    assert ended(recorder).bytes_client_to_server == 0


async def test_a_close_that_the_socket_does_not_take_does_not_keep_the_leg(here, session_id):
    client, server = Socket(session_id), Socket(session_id)
    server.takes_close = False
    legs = [await client.open(), await server.open()]
    client.leaves()
    async with asyncio.timeout(10):
        await asyncio.gather(*legs)


@pytest.mark.parametrize("when", ["kept", "first", "later"])
async def test_a_drain_without_splice_waits_for_the_message_in_hand(here, session_id, recorder, when):
    """Be it one that was kept for the peer, the first one since that came, or one later on."""
    client, server = Socket(session_id, grant(Role.CLIENT)), Socket(session_id, grant(Role.SERVER))
    sent = [b"in hand"]
    legs = [await client.open()]
    if when == "kept":
        server.room.clear()
        client.sends(b"in hand")
        await turns()
    legs.append(await server.open())
    if when == "later":
        sent.insert(0, b"before")
        client.sends(b"before")
        await turns()
        assert server.messages == [b"before"]
    if when != "kept":
        server.room.clear()
        client.sends(b"in hand")
    await server.waits.wait()
    draining = asyncio.create_task(here.drain(4.0))  # twice what a close may take: live sessions get no time
    asyncio.get_running_loop().call_later(0.12, server.room.set)
    await asyncio.gather(*legs, draining)
    assert server.messages == sent
    assert server.close == (1012, "restarting: the relay restarts; come back")
    record = ended(recorder)
    assert (record.frames_client_to_server, record.bytes_client_to_server) == (len(sent), len(b"".join(sent)))


async def test_a_drain_with_nothing_in_hand_does_not_wait(here, session_id):
    client, server = await pair(session_id)
    client.sends(b"delivered")
    await turns()
    began = asyncio.get_running_loop().time()
    await here.drain(4.0)
    assert asyncio.get_running_loop().time() - began < 1.8, "it took what a close may take"
    await turns()
    assert [socket.close[0] for socket in (client, server)] == [1012, 1012]


# Who is let in


async def test_a_refusal_is_told_by_a_close_frame_and_takes_no_place(here, session_id):
    refused = Socket(session_id, Refused(CloseReason.FORBIDDEN, "not for you"))
    await (await refused.open())
    assert refused.close == (4403, "forbidden: not for you")
    assert here._live == {}


async def test_a_third_leg_is_told_that_the_session_is_full(here, session_id):
    await pair(session_id)
    third = Socket(session_id)
    await (await third.open())
    assert third.close == (4409, "session_full: both places of this session are taken")


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_backend_that_fails_or_hangs_refuses_a_leg_in_time(here, session_id, how, caplog):
    async def join(*_: object) -> None:
        if how == "hangs":
            await asyncio.Event().wait()
        raise RuntimeError("a backend's own error")

    here.rendezvous = Mock(join=join)
    socket = Socket(session_id)
    await (await socket.open())
    assert socket.close[0] == 1013
    assert "a leg is refused" in caplog.text


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["bearer.x"], None), (["other", SUBPROTOCOL, "bearer.x"], SUBPROTOCOL)],
    ids=["none", "a token alone", "ours among others"],
)
async def test_only_our_own_subprotocol_is_ever_chosen(here, session_id, offered, chosen):
    socket = Socket(session_id)
    socket.scope["subprotocols"] = offered
    await socket.open()
    assert socket.sent[0]["subprotocol"] == chosen


async def test_one_that_is_gone_before_it_is_accepted_takes_no_place(here, session_id):
    socket = Socket(session_id)
    socket.received.get_nowait()
    socket.leaves(1006)
    await socket.run()
    assert (socket.sent, here._live) == ([], {})


# The channel layer


async def test_an_event_of_the_group_ends_the_session_with_its_reason_and_detail(here, session_id):
    client, server = await pair(session_id)
    ((uuid, _),) = here._live.items()
    layer = get_channel_layer()
    await layer.group_send(sessions.group_name(uuid), {"type": "something.else", "reason": "stalled"})
    await turns()
    assert client.close is None
    await layer.group_send(
        sessions.group_name(uuid),
        {"type": sessions.CLOSE_EVENT, "reason": "closed_by_operator", "detail": "maintenance"},
    )
    await turns()
    assert client.close == server.close == (4499, "closed_by_operator: maintenance")


async def test_a_channel_layer_that_fails_is_asked_again_and_the_session_goes_on(
    here, session_id, monkeypatch, caplog
):
    monkeypatch.setattr("relay.entry.consumers.CHANNEL_LAYER_RETRY_SECONDS", 0.01)
    layer = get_channel_layer()
    receive = layer.receive
    answers = iter([ConnectionError("a restart")] * 2)

    async def failing(channel: str) -> Any:
        if error := next(answers, None):
            raise error
        return await receive(channel)

    monkeypatch.setattr(layer, "receive", failing)
    client, server = await pair(session_id)
    ((uuid, _),) = here._live.items()
    client.sends(b"meanwhile")
    await turns()
    assert server.messages == [b"meanwhile"]
    event = {"type": sessions.CLOSE_EVENT, "reason": "closed_by_operator"}
    await layer.group_send(sessions.group_name(uuid), event)
    async with asyncio.timeout(10):
        while client.close is None or server.close is None:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)
    assert caplog.text.count("the channel layer failed, events are late: ConnectionError") == 2


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_leg_that_can_not_join_its_group_is_told_to_try_again_later(
    here, session_id, monkeypatch, how
):
    async def group_add(*_: object) -> None:
        if how == "hangs":
            await asyncio.Event().wait()
        raise ConnectionError

    monkeypatch.setattr(get_channel_layer(), "group_add", group_add)
    socket = Socket(session_id)
    await (await socket.open())
    assert socket.close[0] == 1013
    assert here._live == {}


async def test_a_leg_that_ends_leaves_nothing_in_the_channel_layer(here, session_id):
    client = Socket(session_id)
    task = await client.open()
    ((uuid, _),) = here._live.items()
    layer = get_channel_layer()
    assert sessions.group_name(uuid) in layer.groups
    client.leaves()
    await task
    assert sessions.group_name(uuid) not in layer.groups


# What the peer is told


@pytest.mark.parametrize(
    ("disconnect", "close"),
    [
        # Our own server says whether it was clean.
        ({"code": 1000, "reason": "x", "clean": True}, Close.by_peer(1000, "x")),
        ({"code": 1000, "reason": "x", "clean": False}, Close.because(CloseReason.PEER_LOST)),
        ({"code": 1005, "reason": "", "clean": True}, Close.by_peer(1000, "")),
        ({"code": 1009, "reason": "x", "clean": True}, Close.by_peer(1009, "x")),
        # Others don't.
        ({"code": 4321, "reason": "x"}, Close.by_peer(4321, "x")),
        ({"code": 4321, "reason": None}, Close.by_peer(4321, "")),
        ({"code": 4321}, Close.by_peer(4321, "")),
        ({"code": 1005, "reason": ""}, Close.by_peer(1000, "")),
        ({"code": 1005}, Close.because(CloseReason.PEER_LOST)),
        ({}, Close.because(CloseReason.PEER_LOST)),
        ({"code": 1006, "reason": ""}, Close.because(CloseReason.PEER_LOST)),
        ({"code": 1002, "reason": "x"}, Close.because(CloseReason.PEER_LOST)),
        ({"code": 1007, "reason": "x"}, Close.because(CloseReason.PEER_LOST)),
        ({"code": 1009, "reason": "x"}, Close.because(CloseReason.MESSAGE_TOO_BIG)),
        ({"code": 1012}, Close.because(CloseReason.RESTARTING)),
        ({"code": 1012, "reason": "x"}, Close.by_peer(1012, "x")),
    ],
    ids=str,
)
def test_what_the_peer_is_told_by_what_the_server_says(disconnect, close):
    assert _close_for_peer({"type": "websocket.disconnect", **disconnect}) == close
