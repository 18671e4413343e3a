"""Live sessions are recorded as they go on, without holding up the event loop."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import pytest

from relay import conf, sessions
from relay.ledger import SessionRecord
from relay.rendezvous.memory import MemoryRendezvous
from relay.rules.closing import Close, CloseReason
from relay.rules.grants import Grant
from relay.rules.roles import Role
from relay.sessions import Leg, Port, Sessions, live
from relay.sessions.service import SLICE_SESSIONS


class Book:
    """A recorder that keeps what it's told, by the moment of the event loop in which it was told."""

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []

    def record(self, record: SessionRecord) -> None:
        self.records.append(record)

    def flush(self, timeout: float) -> bool:
        return True


class Timers:
    """The event loop's timers, fired by hand: no test waits for time to pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.due: list[tuple[float, Any]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", self._call_later)

    def _call_later(self, seconds: float, call: Any, *args: Any) -> Mock:
        if call.__name__ == "_checkpoint":
            self.due.append((seconds, call))
        return Mock()

    def fire(self) -> float:
        """Run the next slice; gives the seconds that were to pass before."""
        seconds, call = self.due.pop(0)
        call()
        return seconds


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    return Timers(monkeypatch)


@pytest.fixture(name="sessions")
async def sessions_of_test(book: Book, timers: Timers) -> Sessions:
    return Sessions(conf.RelaySettings(), MemoryRendezvous(), book)


async def join(
    sessions: Sessions, session_id: str, role: Role | None = None, account: str | None = None
) -> Leg:
    grant = Mock(spec=Grant, subject=session_id, account_id=account, token_id=None, role=role)
    return await sessions.join(session_id, grant, Port(Mock(), ""))


async def test_a_live_session_whose_counts_changed_is_recorded_once_for_each_change(sessions, book, timers):
    leg = await join(sessions, "busy")
    await join(sessions, "idle")
    del book.records[:]
    leg.live.meters[Role.CLIENT].nbytes += 100
    assert timers.fire() == 10
    [record] = book.records
    assert (record.session_id, record.bytes_client_to_server, record.closed) == ("busy", 100, False)
    timers.fire()
    assert len(book.records) == 1


async def test_a_session_that_has_ended_is_not_recorded_again(sessions, book, timers):
    leg = await join(sessions, "room")
    await join(sessions, "other")
    sessions.end(leg, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    leg.live.meters[Role.CLIENT].nbytes += 100
    count = len(book.records)
    timers.fire()
    assert len(book.records) == count


async def test_a_session_that_ends_while_a_checkpoint_goes_on_is_not_recorded_again(sessions, book, timers):
    legs = [await join(sessions, f"room-{number}") for number in range(3 * SLICE_SESSIONS)]
    timers.fire()
    assert legs[0].live in sessions._unchecked
    sessions.end(legs[0], Close.because(CloseReason.CLOSED_BY_OPERATOR))
    legs[0].live.meters[Role.CLIENT].nbytes += 100  # what another node told after that
    del book.records[:]
    while sessions._unchecked:
        timers.fire()
    assert book.records == []


async def test_without_a_session_no_timer_goes_on_and_the_next_one_starts_it_again(sessions, timers):
    leg = await join(sessions, "room")
    sessions.end(leg, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    timers.fire()
    assert not timers.due
    await join(sessions, "again")
    assert len(timers.due) == 1


@pytest.mark.parametrize("count", [1, SLICE_SESSIONS, 10 * SLICE_SESSIONS + 1, 2000])
async def test_many_sessions_are_recorded_slice_by_slice_within_the_interval(sessions, book, timers, count):
    legs = [await join(sessions, f"room-{number}") for number in range(count)]
    timers.fire()
    for leg in legs:
        leg.live.meters[Role.SERVER].nbytes += 1
    del book.records[:]
    sessions._unchecked.clear()
    seconds, slices = 0.0, 0
    while len(book.records) < count:
        before = len(book.records)
        seconds += timers.fire()
        slices += 1
        assert len(book.records) - before <= SLICE_SESSIONS
    assert slices == -(-count // SLICE_SESSIONS)
    assert seconds == pytest.approx(10, rel=0.5) if slices > 1 else seconds <= 10
    assert len({record.session_uuid for record in book.records}) == count


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1)])
async def test_a_step_of_the_wall_clock_changes_no_duration(
    book: Book, timers: Timers, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    seconds, wall = [100.0], [datetime(2026, 11, 3, 12, tzinfo=UTC)]
    for module in (live, sessions.service):
        monkeypatch.setattr(module, "now_utc", lambda: wall[0])
    here = Sessions(conf.RelaySettings(), MemoryRendezvous(), book, clock=lambda: seconds[0])
    leg = await join(here, "room", Role.CLIENT)
    seconds[0] += 2
    wall[0] += step
    await join(here, "room", Role.SERVER)
    seconds[0] += 3.5
    here.end(leg, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    record = book.records[-1]
    assert (record.waiting_ms, record.paired_ms, record.duration_seconds) == (2000, 3500, 5.5)
    assert record.timestamp == wall[0]


async def test_a_closed_record_has_the_curve_of_its_traffic_and_a_live_one_none(
    book: Book, timers: Timers
) -> None:
    seconds = [0.0]
    here = Sessions(conf.RelaySettings(), MemoryRendezvous(), book, clock=lambda: seconds[0])
    leg = await join(here, "room", Role.CLIENT)
    await join(here, "room", Role.SERVER)
    for _ in range(3):
        seconds[0] += 10
        leg.live.meters[Role.CLIENT].nbytes += 100
        timers.fire()
    assert book.records[-1].traffic == ()
    seconds[0] += 1
    here.end(leg, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    assert book.records[-1].traffic == (
        *((0, 0, 0), (10_000, 100, 0), (20_000, 200, 0), (30_000, 300, 0), (31_000, 300, 0)),
    )


@pytest.mark.parametrize("first", [Role.CLIENT, Role.SERVER])
@pytest.mark.parametrize(
    ("client", "server", "pays"),
    [
        ("of the client", "of the server", "of the client"),
        (None, "of the server", "of the server"),
        ("of the client", None, "of the client"),
        ("", "of the server", "of the server"),
        (None, None, None),
    ],
)
async def test_the_clients_account_pays_and_the_servers_where_the_clients_token_names_none(
    sessions: Sessions, book: Book, first: Role, client: str | None, server: str | None, pays: str | None
) -> None:
    accounts = {Role.CLIENT: client, Role.SERVER: server}
    for role in (first, first.other):
        leg = await join(sessions, "room", role, accounts[role])
    sessions.end(leg, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    assert book.records[-1].account_id == pays
    assert {one.role: one.account_id for one in book.records[-1].legs} == accounts


LOST = Close.because(CloseReason.PEER_LOST)
BYE = Close.by_peer(4321, "bye")
OPERATOR = Close.because(CloseReason.CLOSED_BY_OPERATOR)


@pytest.mark.parametrize(
    ("close", "gone", "client", "server"),
    [
        (OPERATOR, False, (4499, OPERATOR.text), (4499, OPERATOR.text)),
        (BYE, True, (4321, "bye"), (4321, "bye")),
        (LOST, True, (None, ""), (4410, LOST.text)),  # a connection that dropped was told nothing
    ],
    ids=["an operator", "one leaves", "one is lost"],
)
async def test_the_legs_of_an_ended_session_say_when_they_left_and_what_they_were_told(
    sessions: Sessions,
    book: Book,
    close: Close,
    gone: bool,
    client: tuple[int | None, str],
    server: tuple[int | None, str],
) -> None:
    leg = await join(sessions, "room", Role.CLIENT)
    await join(sessions, "room", Role.SERVER)
    leg.live.meters[Role.CLIENT].nbytes += 70
    leg.live.meters[Role.CLIENT].frames += 7
    leg.live.meters[Role.SERVER].nbytes += 50
    leg.live.meters[Role.SERVER].frames += 5
    sessions.gone(leg, close) if gone else sessions.end(leg, close)
    record = book.records[-1]
    assert record.closed
    found = {one.role: one for one in record.legs}
    assert all(record.timestamp <= one.left_at for one in record.legs)
    assert [(found[r].close_code, found[r].close_reason) for r in ("client", "server")] == [client, server]
    assert (found["client"].bytes_received, found["client"].frames_received) == (50, 5)
    assert (found["server"].bytes_received, found["server"].frames_received) == (70, 7)
    assert (record.bytes_client_to_server, record.frames_client_to_server) == (70, 7)
    assert (record.bytes_server_to_client, record.frames_server_to_client) == (50, 5)
