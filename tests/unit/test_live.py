"""A session as one process sees it: whom it bills, who is stalled, and what its end does to its legs."""

import asyncio
from unittest.mock import Mock
from uuid import uuid4

import pytest

from relay.rules.closing import Close, CloseReason
from relay.rules.grants import Grant
from relay.rules.lifecycle import Session
from relay.rules.roles import Role
from relay.sessions.live import Leg, LiveSession, Port, now_utc

DONE = Close.by_peer(4321, "done")


def seated(*roles: Role, connection: Mock | None = None, accounts: tuple[str | None, ...] = (None, None)):
    """A session with legs in these roles."""
    live = LiveSession(Session(uuid4(), "room", Role.CLIENT, 0.0))
    for role, account in zip(roles, accounts, strict=False):
        leg = Leg(
            Grant(None, account, role, None, None), Port(Mock(), "", connection), asyncio.get_running_loop()
        )
        live.seat(leg, role)
    return live


@pytest.mark.parametrize(
    ("accounts", "billed"),
    [
        (("acme", "other"), "acme"),
        ((None, "other"), "other"),
        (("", "other"), "other"),
        (("", None), None),
        ((None, None), None),
    ],
)
@pytest.mark.parametrize("first", Role)
async def test_the_clients_account_is_billed_whoever_came_first(accounts, billed, first):
    by_role = dict(zip(Role, accounts, strict=True))
    live = seated(first, first.other, accounts=(by_role[first], by_role[first.other]))
    assert live.record(1.0, closed=False).account_id == billed


async def test_the_curve_of_traffic_begins_when_the_first_leg_came():
    live = seated(*Role)
    live.session.pair(Role.SERVER, 5.0)
    up, down = live.meters[Role.CLIENT], live.meters[Role.SERVER]
    up.nbytes, down.nbytes = 10, 20
    assert live.record(6.0, closed=False).traffic == ()
    up.nbytes = 30
    live.session.end(DONE, 8.0)
    live.ended_at = now_utc()
    record = live.record(9.0, closed=True)
    assert record.traffic == ((6000, 10, 20), (8000, 30, 20))
    assert (record.waiting_ms, record.paired_ms, record.timestamp) == (5000, 3000, live.ended_at)


class Waits:
    """A session whose receivers take what a test says: frames so far, None if nothing waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **taken: int | None) -> None:
        self.live = seated(*Role)
        self.taken = taken
        monkeypatch.setattr(self.live.__class__, "_taken_by", lambda live, leg: self.taken.get(leg.role))


async def test_a_receiver_is_stalled_since_it_was_first_seen_to_take_nothing(monkeypatch):
    waits = Waits(monkeypatch, client=5)
    assert waits.live.stalled_since(10.0) == 10.0
    assert waits.live.stalled_since(20.0) == 10.0
    waits.taken["client"] = 6
    assert waits.live.stalled_since(30.0) == 30.0
    assert waits.live.stalled_since(40.0) == 30.0


async def test_one_for_whom_nothing_waits_is_not_stalled_and_begins_anew(monkeypatch):
    waits = Waits(monkeypatch, client=5)
    waits.live.stalled_since(10.0)
    waits.taken["client"] = None
    assert waits.live.stalled_since(20.0) is None
    waits.taken["client"] = 5
    assert waits.live.stalled_since(30.0) == 30.0


async def test_of_two_stalled_receivers_the_first_counts(monkeypatch):
    waits = Waits(monkeypatch, client=5)
    waits.live.stalled_since(10.0)
    waits.taken["server"] = 7
    assert waits.live.stalled_since(20.0) == 10.0
    waits.taken["client"] = None
    assert waits.live.stalled_since(30.0) == 20.0


async def test_what_a_leg_takes_is_told_by_its_server_where_that_can_and_else_by_its_links():
    live = seated(Role.SERVER)
    leg = live.legs[Role.SERVER]
    live.meters[Role.CLIENT].frames = 3
    live.link = Mock(delivering=True, sending=False)
    assert live._taken_by(leg) == 3
    live.link = Mock(delivering=False, sending=True)  # that is for the peer's node to judge
    assert live._taken_by(leg) is None
    live = seated(*Role)
    live.meters[Role.CLIENT].frames = 4
    live.legs[Role.CLIENT].link = Mock(sending=True)
    assert live._taken_by(live.legs[Role.SERVER]) == 4
    live.legs[Role.CLIENT].link = Mock(sending=False)
    assert live._taken_by(live.legs[Role.SERVER]) is None
    live = seated(Role.SERVER, connection=Mock(unsent_bytes=1, taken_bytes=999))
    assert live._taken_by(live.legs[Role.SERVER]) == 999
    live = seated(Role.SERVER, connection=Mock(unsent_bytes=0, taken_bytes=999))
    assert live._taken_by(live.legs[Role.SERVER]) is None


async def test_in_the_moment_of_its_end_a_session_stops_its_legs():
    connection = Mock()
    leg = seated(Role.CLIENT, connection=connection).legs[Role.CLIENT]
    leg.reader = asyncio.create_task(asyncio.Event().wait())
    leg.spliced = True
    leg.stop(DONE, gone=False)
    connection.unsplice.assert_called_once_with()
    assert leg.reader.cancelling()
    assert leg.paired.cancelled()
    assert leg.over.result() == DONE
    assert leg.record().left_at
    await asyncio.wait([leg.reader])


async def test_a_leg_is_not_stopped_by_its_own_reader_and_a_cancelled_wait_is_let_be():
    leg = seated(Role.CLIENT).legs[Role.CLIENT]

    async def read() -> None:
        leg.stop(DONE, gone=True)

    leg.reader = asyncio.create_task(read())
    await leg.reader
    assert leg.over.result() is None
    assert (leg.record().close_code, leg.record().close_reason) == (4321, "done")
    other = seated(Role.CLIENT).legs[Role.CLIENT]
    other.over.cancel()
    other.stop(Close.because(CloseReason.PEER_LOST), gone=True)
    assert (other.record().close_code, other.record().close_reason) == (None, "")
    other.stop(Close.because(CloseReason.STALLED), gone=True)
    assert other.record().close_code == 4413
