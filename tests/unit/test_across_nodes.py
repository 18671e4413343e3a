"""Sessions across two nodes: what reaches whom, what is recorded by whom, and when they are forgotten."""

import asyncio
import random
from uuid import uuid4

import pytest

from relay.rules.closing import Close, CloseReason
from relay.rules.roles import Role
from tests.unit.two_nodes import EARLIER, EXCHANGED, ONE_WAY_SECONDS, OPENER, Pair, counts, layer, over
from tests.unit.virtual import virtually

__all__ = ["layer"]

LINK_SECONDS = 15
"""The default of `RELAY_LINK_SECONDS`."""


@virtually
async def test_both_nodes_record_what_was_delivered_and_how_it_ended(layer):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.leave()
    await asyncio.sleep(1)
    assert pair.leg.over.result() is None
    assert pair.peer_leg.over.result() == Close.by_peer(4321, "done")
    (record,) = pair.owner.book.ends
    assert counts(record) == EXCHANGED
    # Its peer came when its node heard of that.
    assert (record.reason, record.waiting_ms, record.owned) == ("peer_left", 2001, True)
    assert record.paired_ms == pytest.approx(100, abs=20)
    assert pair.other.book.ends == []
    assert {record.owned for record in pair.other.book.records} == {False}
    for book, received, socket in (
        (pair.owner.book, (3, 300), pair.socket),
        (pair.other.book, (2, 5), pair.peer_socket),
    ):
        leg = book.leg
        assert (leg.frames_received, leg.bytes_received) == received == (len(socket.received), socket.nbytes)
        assert (leg.close_code, leg.close_reason) == (4321, "done")
        assert leg.left_at is not None
    assert pair.owner.knows_nothing
    assert pair.other.knows_nothing


@virtually
async def test_the_times_of_a_pair_are_those_of_the_node_where_the_first_leg_came(layer):
    pair = await Pair(layer).meet()
    assert (pair.peer_leg.live.node, pair.peer_leg.live.started_at) == (OPENER, EARLIER)
    opened = [leg.live.session.opened_at for leg in (pair.leg, pair.peer_leg)]
    assert opened[1] == pytest.approx(opened[0] + ONE_WAY_SECONDS)


@virtually
async def test_a_pair_that_neither_sends_nor_leaves_goes_on(layer):
    pair = await Pair(layer).meet()
    await asyncio.sleep(10 * LINK_SECONDS)
    await pair.exchange()
    assert len(pair.owner.sent) < 120, "a silent link asks seldom"


@pytest.mark.parametrize("opens", Role)
@pytest.mark.parametrize(
    ("of_client", "of_server", "billed"),
    [("acme", "other", "acme"), (None, "other", "other"), ("acme", None, "acme"), (None, None, None)],
)
@virtually
async def test_the_clients_account_is_billed_and_the_servers_where_its_token_names_none(
    layer, opens, of_client, of_server, billed
):
    pair = await Pair(layer).meet(of_client, of_server, opens)
    pair.leave()
    await asyncio.sleep(1)
    assert [end.account_id for end in pair.owner.book.ends] == [billed]


@pytest.mark.parametrize("who", ["owner", "other"])
@virtually
async def test_a_connection_that_drops_closes_the_other_leg_as_peer_lost(layer, who):
    pair = await Pair(layer).meet()
    await pair.exchange()
    lost = Close.because(CloseReason.PEER_LOST)
    pair.leave(lost) if who == "owner" else pair.peer_leaves(lost)
    await asyncio.sleep(1)
    gone, stays = (pair.owner, pair.other) if who == "owner" else (pair.other, pair.owner)
    assert (gone.book.leg.close_code, gone.book.leg.close_reason) == (None, ""), "it was told nothing"
    assert (stays.book.leg.close_code, stays.book.leg.close_reason) == (4410, lost.text)
    assert gone.book.leg.left_at
    assert stays.book.leg.left_at
    (record,) = pair.owner.book.ends
    assert (record.reason, *counts(record)) == ("peer_lost", *EXCHANGED)


@virtually
async def test_both_legs_may_leave_at_once_and_the_reason_of_the_owner_stands(layer):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.peer_leaves(Close.because(CloseReason.PEER_LOST))
    pair.leave()
    await asyncio.sleep(1)
    (record,) = pair.owner.book.ends
    assert (record.reason, *counts(record)) == ("peer_left", *EXCHANGED)
    assert pair.other.book.ends == []
    assert pair.owner.knows_nothing
    assert pair.other.knows_nothing


@virtually
async def test_a_session_ends_once_and_its_first_reason_stands(layer):
    pair = await Pair(layer).meet()
    pair.leave()
    pair.leave(Close.because(CloseReason.PEER_LOST))
    pair.owner.sessions.end(pair.leg, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    await until(lambda: pair.owner.knows_nothing and pair.other.knows_nothing)
    assert pair.peer_leg.over.result() == Close.by_peer(4321, "done")
    assert [end.reason for end in pair.owner.book.ends] == ["peer_left"]
    assert pair.owner.book.leg.close_code == 4321


# Nothing after the end


@virtually
async def test_what_was_sent_before_a_leg_left_is_delivered_before_its_peer_is_told(layer):
    pair = await Pair(layer).meet()
    pair.peer_socket.reads.clear()
    for number in range(5):
        await pair.leg.link.forward({"text": str(number)})
    pair.leave()
    await asyncio.sleep(1)
    assert not pair.peer_leg.over.done()
    pair.peer_socket.reads.set()
    await asyncio.sleep(1)
    assert pair.peer_socket.received == ["0", "1", "2", "3", "4"]
    assert pair.peer_leg.over.result() == Close.by_peer(4321, "done")
    assert pair.owner.book.last.frames_client_to_server == 5
    assert pair.other.book.leg.frames_received == 5


@pytest.mark.parametrize("where", ["waits for the socket", "is on its way"])
@virtually
async def test_nothing_is_handed_over_after_a_sessions_end(layer, where):
    pair = await Pair(layer).meet()
    await pair.exchange()
    if where == "waits for the socket":
        pair.peer_socket.reads.clear()
        for text in ("taken", "kept", "kept, too"):
            await pair.leg.link.forward({"text": text})
            await asyncio.sleep(0.1)
        offered = pair.peer_socket.offered
        pair.other.sessions.end(pair.peer_leg, Close.because(CloseReason.STALLED))
        pair.peer_socket.reads.set()
    else:
        offered = pair.peer_socket.offered
        await pair.leg.link.forward({"text": "too late"})
        await asyncio.sleep(0)
        pair.other.sessions.end(pair.peer_leg, Close.because(CloseReason.STALLED))
    await asyncio.sleep(1)
    assert pair.peer_socket.offered == offered
    assert pair.peer_socket.received == ["one", "tw"]
    assert counts(pair.owner.book.last) == EXCHANGED
    assert pair.other.book.leg.bytes_received == 5
    assert pair.leg.over.result().reason is CloseReason.STALLED
    assert pair.owner.knows_nothing
    assert pair.other.knows_nothing


@virtually
async def test_the_frames_of_a_leg_whose_socket_is_gone_are_not_counted(layer):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.peer_socket.is_gone = True
    await pair.leg.link.forward({"text": "nobody reads this"})
    await asyncio.sleep(0.1)
    pair.peer_leaves(Close.because(CloseReason.PEER_LOST))
    await asyncio.sleep(1)
    assert counts(pair.owner.book.last) == EXCHANGED
    assert pair.owner.knows_nothing
    assert pair.other.knows_nothing


# Messages are lost, nodes die


@virtually
async def test_what_is_lost_is_sent_again_once(layer):
    pair = await Pair(layer).meet()
    draw = random.Random(3)  # not each third one: that may be the same one of a question and its answer
    pair.network.loses = lambda message: draw.random() < 1 / 3
    for _ in range(50):
        await pair.leg.link.forward({"text": "x"})
        await pair.peer_leg.link.forward({"text": "yz"})
        await asyncio.sleep(0.01)
    await until(lambda: len(pair.socket.received) == len(pair.peer_socket.received) == 50)
    pair.leave()
    await asyncio.sleep(LINK_SECONDS)
    assert counts(pair.owner.book.last) == (50, 50, 50, 100)
    assert pair.owner.knows_nothing
    assert pair.other.knows_nothing


@pytest.mark.parametrize("which", ["opener", "joiner"])
@virtually
async def test_an_end_that_the_other_node_never_acknowledges_is_forgotten_by_both(layer, which):
    pair = await Pair(layer).meet()
    await pair.exchange()
    ends, hears = (pair.owner, pair.other) if which == "opener" else (pair.other, pair.owner)
    hears.heard_by_nobody = True
    pair.leave() if which == "opener" else pair.peer_leaves()
    took = await over(until(lambda: ends.knows_nothing))
    assert LINK_SECONDS / 2 <= took <= LINK_SECONDS / 2 + 2
    hears.heard_by_nobody = False
    await until(lambda: hears.knows_nothing)
    for node in (ends, hears):
        assert [(end.reason, counts(end)) for end in node.book.ends] in (
            [("peer_left", EXCHANGED)],
            [] if which == "joiner" and node is hears else None,
        )
    leg = hears.book.leg
    assert (leg.close_code, leg.close_reason) == (4321, "done")


@pytest.mark.parametrize("dies", ["owner", "other"])
@virtually
async def test_a_node_that_dies_in_a_session_is_noticed_and_the_other_records_what_it_was_told(layer, dies):
    pair = await Pair(layer).meet()
    await pair.exchange()
    dead, lives = (pair.owner, pair.other) if dies == "owner" else (pair.other, pair.owner)
    leg = pair.peer_leg if dies == "owner" else pair.leg
    dead.kill()
    took = await over(until(leg.over.done))
    assert LINK_SECONDS - 3 <= took <= LINK_SECONDS + 1
    assert leg.over.result().reason is CloseReason.LINK_LOST
    took = await over(until(lambda: lives.knows_nothing))
    assert took <= LINK_SECONDS / 2 + 2
    (record,) = lives.book.ends
    assert (record.reason, *counts(record), record.owned) == ("link_lost", *EXCHANGED, True)
    assert lives.book.leg.close_code == 4415


@pytest.mark.parametrize("seconds", [60, 600])
@virtually
async def test_sends_that_fail_do_not_make_the_other_node_dead(layer, seconds):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.owner.cut_off = pair.other.cut_off = True
    await pair.leg.link.forward({"text": "not acknowledged"})
    await asyncio.sleep(seconds)
    assert pair.leg.over.result().reason is CloseReason.LINK_LOST
    assert pair.owner.book.ends == pair.other.book.ends == []
    pair.owner.cut_off = pair.other.cut_off = False
    await until(lambda: pair.owner.knows_nothing and pair.other.knows_nothing)
    assert [counts(end) for end in pair.owner.book.ends] == [EXCHANGED]
    assert pair.other.book.ends == []


@virtually
async def test_a_node_that_was_cut_off_and_taken_for_dead_records_what_it_counted(layer):
    """The other one knew less. The ledger keeps what was recorded first, and adds what this one has more."""
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.network.loses = lambda message: message["to"] == "client"
    await pair.leg.link.forward({"text": "delivered"})
    await asyncio.sleep(0.1)
    assert pair.peer_socket.received[-1] == "delivered"
    pair.other.cut_off = True
    await until(lambda: pair.owner.knows_nothing)
    assert [counts(end) for end in pair.owner.book.ends] == [EXCHANGED]
    await until(pair.peer_leg.over.done)
    pair.network.loses = lambda message: False
    pair.other.cut_off = False
    await until(lambda: pair.other.knows_nothing)
    frames, nbytes, *down = EXCHANGED
    assert [counts(end) for end in pair.other.book.ends] == [(frames + 1, nbytes + len("delivered"), *down)]


async def until(happened, seconds: float = 120) -> None:
    """Returns when it has, within so many of the loop's seconds."""
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110 - time costs nothing here
            await asyncio.sleep(0.01)


# Who writes the record, and until when the other one can


@pytest.mark.parametrize("leaves_first", ["opener", "joiner"])
@virtually
async def test_the_other_node_keeps_what_it_knows_until_the_owners_record_is_safe(layer, leaves_first):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.owner.book.hangs = True
    pair.leave() if leaves_first == "opener" else pair.peer_leaves()
    await asyncio.sleep(10 * LINK_SECONDS)
    assert len(pair.owner.book.ends) == 1
    assert not pair.owner.knows_nothing
    assert not pair.other.knows_nothing
    assert pair.other.book.ends == []
    pair.owner.book.works_again()
    await until(lambda: pair.owner.knows_nothing and pair.other.knows_nothing)
    assert pair.other.book.ends == []
    assert len(pair.owner.book.ends) == 1


@pytest.mark.parametrize("leaves_first", ["opener", "joiner"])
@virtually
async def test_if_the_owner_is_killed_before_its_record_is_safe_the_other_writes_the_exact_figures(
    layer, leaves_first
):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.owner.book.hangs = True
    pair.leave() if leaves_first == "opener" else pair.peer_leaves()
    await asyncio.sleep(10 * LINK_SECONDS)
    pair.owner.kill()
    took = await over(until(lambda: pair.other.knows_nothing))
    assert took <= LINK_SECONDS / 2 + 2
    (record,) = pair.other.book.ends
    assert (record.reason, *counts(record)) == ("peer_left", *EXCHANGED)
    assert (record.owned, record.node, record.started_at) == (True, OPENER, EARLIER)


@virtually
async def test_the_other_node_keeps_its_own_record_until_that_is_safe(layer):
    pair = await Pair(layer).meet()
    await pair.exchange()
    pair.owner.kill()
    pair.other.book.hangs = True
    pair.peer_leaves()
    await asyncio.sleep(10 * LINK_SECONDS)
    assert len(pair.other.book.ends) == 1
    assert pair.other.sessions._remote, "else it would say that it's done"
    pair.other.book.works_again()
    await until(lambda: pair.other.knows_nothing)
    assert len(pair.other.book.ends) == 1


@virtually
async def test_an_owner_that_has_recorded_and_hears_nothing_more_forgets(layer):
    pair = await Pair(layer).meet()
    pair.network.loses = lambda message: message.get("knows_end", False)
    pair.leave()
    await asyncio.sleep(1)
    pair.other.kill()
    await until(lambda: pair.owner.knows_nothing)
    assert len(pair.owner.book.ends) == 1


# A session that is over, or was never met


@virtually
async def test_who_comes_to_a_session_that_has_just_ended_hears_how_and_records_no_end(layer):
    pair = Pair(layer)
    leg, _ = await pair.owner.join("room", Role.CLIENT, "alice")
    pair.network.loses = lambda message: "hello" in message
    peer_leg, _ = await pair.other.join("room", Role.SERVER, "bob")
    pair.owner.sessions.gone(leg, Close.by_peer(4001, "bye"))
    pair.network.loses = lambda message: False
    await until(peer_leg.over.done, 5)
    assert peer_leg.over.result() == Close.by_peer(4001, "bye")
    await until(lambda: pair.other.knows_nothing)
    assert pair.other.book.ends == []
    assert [(end.reason, end.paired_ms) for end in pair.owner.book.ends] == [("peer_left", 0)]
    assert (pair.other.book.leg.close_code, pair.other.book.leg.close_reason) == (4001, "bye")


@virtually
async def test_the_end_of_a_session_of_one_node_is_remembered_only_where_there_are_others(layer):
    pair = Pair(layer)
    leg, _ = await pair.owner.join("room", Role.CLIENT, "alice")
    pair.owner.sessions.gone(leg, Close.by_peer(4001, "bye"))
    assert list(pair.owner.sessions._ends.values()) == [Close.by_peer(4001, "bye")]


# A node drains


@pytest.mark.parametrize("drains", ["owner", "other"])
@virtually
async def test_a_drain_delivers_what_was_taken_and_both_hear_to_come_back(layer, drains):
    pair = await Pair(layer, close_seconds=2).meet()
    node = pair.owner if drains == "owner" else pair.other
    pair.leg.idle = pair.peer_leg.idle = True
    pair.peer_socket.reads.clear()
    await pair.leg.link.forward({"text": "taken"})
    await pair.peer_leg.link.forward({"text": "this, too"})
    draining = asyncio.ensure_future(node.sessions.drain(20))
    await asyncio.sleep(17)  # it waits for sessions to end first
    assert not pair.leg.over.done()
    pair.peer_socket.reads.set()
    assert await over(draining) <= 1
    for leg in (pair.leg, pair.peer_leg):
        assert leg.over.result().reason is CloseReason.RESTARTING
    (record,) = pair.owner.book.ends
    assert (record.reason, *counts(record)) == ("restarting", 1, 5, 1, 9)
    assert pair.owner.knows_nothing
    assert pair.other.knows_nothing


@virtually
async def test_a_drain_waits_for_what_the_readers_of_both_legs_have_in_hand(layer):
    pair = await Pair(layer).meet()
    reader = pair.leg.reader = asyncio.create_task(asyncio.Event().wait())
    pair.leg.idle = pair.peer_leg.idle = False
    assert not pair.owner.sessions._nothing_under_way()
    await asyncio.sleep(1)
    assert not any("drains" in message for message in pair.owner.sent)
    assert not reader.cancelling()
    pair.leg.idle = True
    pair.owner.sessions._nothing_under_way()
    assert reader.cancelling(), "it takes nothing more"
    await asyncio.sleep(5)
    assert not pair.peer_leg.over.done()
    assert len(pair.other.sessions._tasks) == 1, "it's told again and again, and waits once"
    pair.peer_leg.idle = True
    await until(lambda: pair.owner.knows_nothing and pair.other.knows_nothing)
    assert [end.reason for end in pair.owner.book.ends] == ["restarting"]


@pytest.mark.parametrize("drains", ["owner", "other"])
@virtually
async def test_a_drain_whose_other_node_is_dead_ends_in_time_with_what_is_known(layer, drains):
    pair = await Pair(layer, link_seconds=60, node_lost_seconds=200).meet()
    await pair.exchange()
    pair.leg.idle = pair.peer_leg.idle = True
    node, dead = (pair.owner, pair.other) if drains == "owner" else (pair.other, pair.owner)
    dead.kill()
    took = await over(node.sessions.drain(20))
    assert took <= 20
    leg = pair.leg if drains == "owner" else pair.peer_leg
    assert leg.over.result().reason is CloseReason.RESTARTING
    # Who doesn't own the record leaves it: the owner may only be out of reach.
    assert [(end.reason, counts(end)) for end in node.book.ends] == (
        [("restarting", EXCHANGED)] if drains == "owner" else []
    )
    assert node.book.leg.close_code == 1012
    assert node.book.leg.left_at


@virtually
async def test_a_node_that_has_given_up_does_not_say_that_it_is_done_before_its_record_is_safe(layer):
    pair = await Pair(layer, link_seconds=60, node_lost_seconds=200).meet()
    await pair.exchange()
    pair.owner.book.hangs = True
    await pair.owner.sessions.drain(20)
    await asyncio.sleep(10)
    assert len(pair.owner.book.ends) == 1
    assert not any("gone" in message or "knows_end" in message for message in pair.owner.sent)
    pair.owner.kill()
    await until(lambda: pair.other.knows_nothing)
    assert [counts(end) for end in pair.other.book.ends] == [EXCHANGED]


# A place that another session has taken


@virtually
async def test_a_superseded_session_ends_as_replaced_though_the_channel_layer_told_nobody(layer):
    pair = await Pair(layer).meet()
    await pair.exchange()
    layer.is_away = True
    third = pair.network.node()  # where the new session is
    third.sessions._end_replaced(pair.leg.session_uuid)
    await asyncio.sleep(1)
    assert not pair.peer_leg.over.done()
    pair.network.store.on_superseded = pair.other.sessions._superseded
    pair.network.store.on_superseded(uuid4())  # one that is over by now
    pair.network.store.on_superseded(pair.leg.session_uuid)
    assert pair.peer_leg.over.result().reason is CloseReason.REPLACED
    await asyncio.sleep(1)
    assert pair.leg.over.result().reason is CloseReason.REPLACED
    assert [(end.reason, counts(end)) for end in pair.owner.book.ends] == [("replaced", EXCHANGED)]
    assert not layer.groups


@virtually
async def test_a_session_that_is_replaced_where_it_is_needs_no_channel_layer(layer):
    pair = await Pair(layer).meet()
    layer.is_away = True
    pair.owner.sessions._end_replaced(pair.leg.session_uuid)
    assert pair.leg.over.result().reason is CloseReason.REPLACED


@virtually
async def test_sessions_are_told_by_their_rendezvous_that_they_have_lost_their_place(layer):
    node = Pair(layer).network.node()
    assert node.sessions.rendezvous.on_superseded == node.sessions._superseded
