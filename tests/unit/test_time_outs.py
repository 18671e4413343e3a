"""The time-outs of a session, to the moment."""

import asyncio
from typing import Any

import pytest

from relay import conf
from relay.rendezvous.memory import MemoryRendezvous
from relay.rules.closing import CloseReason
from relay.rules.grants import Grant
from relay.rules.roles import Role
from relay.sessions import Leg, Port, Sessions
from tests.unit.two_nodes import Book, Socket
from tests.unit.virtual import virtually

WAITS, STALLS, LASTS = 300.0, 60.0, 1000.0


class Room:
    """One session of one process."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        given = {"session_timeout": WAITS, "stall_seconds": STALLS, "max_session_seconds": LASTS, **settings}
        self.book = Book()
        self.sessions = Sessions(
            conf.RelaySettings(**given), MemoryRendezvous(), self.book, clock=self.loop.time
        )
        self.sockets: dict[Role, Socket] = {}
        self.began = self.loop.time()

    async def join(self, role: Role) -> Leg:
        self.sockets[role] = Socket()
        grant = Grant(str(role), None, role, None, None)
        return await self.sessions.join("room", grant, Port(self.sockets[role].send, ""))

    async def pair(self) -> tuple[Leg, Leg]:
        return await self.join(Role.CLIENT), await self.join(Role.SERVER)

    async def ends(self, leg: Leg) -> tuple[CloseReason, float]:
        """Why, and after how many seconds."""
        close = await asyncio.shield(leg.over)
        assert close is not None
        return close.reason, self.loop.time() - self.began


def at(seconds: float) -> Any:
    return pytest.approx(seconds, abs=0.001)


@virtually
async def test_who_waits_for_its_peer_waits_for_so_long():
    room = Room()
    assert await room.ends(await room.join(Role.CLIENT)) == (CloseReason.WAIT_TIMEOUT, at(WAITS))


@virtually
async def test_no_session_lasts_longer_than_the_longest_whether_it_waits_or_not():
    room = Room(session_timeout=2 * LASTS, stall_seconds=4 * LASTS)
    assert await room.ends(await room.join(Role.CLIENT)) == (CloseReason.EXPIRED, at(LASTS))
    room = Room(session_timeout=2 * LASTS, stall_seconds=4 * LASTS)
    leg, _ = await room.pair()
    assert await room.ends(leg) == (CloseReason.EXPIRED, at(LASTS))


@virtually
async def test_a_pair_that_sends_nothing_is_idle_from_its_pairing_on():
    room = Room()
    leg = await room.join(Role.CLIENT)
    await asyncio.sleep(100)
    await room.join(Role.SERVER)
    reason, seconds = await room.ends(leg)
    assert reason is CloseReason.IDLE_TIMEOUT
    assert 100 + WAITS <= seconds <= 100 + WAITS + 0.001


@pytest.mark.parametrize("sender", Role)
@virtually
async def test_a_frame_either_way_puts_that_off(sender):
    room = Room()
    legs = dict(zip(Role, await room.pair(), strict=True))
    for _ in range(3):
        await asyncio.sleep(200)
        await legs[sender].link.forward({"text": "x"})
    reason, seconds = await room.ends(legs[sender.other])
    assert (reason, seconds) == (CloseReason.IDLE_TIMEOUT, at(600 + WAITS))


@virtually
async def test_a_receiver_that_takes_nothing_is_stalled_and_seen_a_quarter_late_at_most():
    room = Room()
    leg, _ = await room.pair()
    await asyncio.sleep(1)
    room.sockets[Role.SERVER].reads.clear()
    sending = asyncio.ensure_future(leg.link.forward({"text": "x"}))
    reason, seconds = await room.ends(leg)
    assert reason is CloseReason.STALLED
    assert 1 + STALLS <= seconds <= 1 + 1.25 * STALLS
    sending.cancel()


@virtually
async def test_a_receiver_that_takes_one_frame_now_and_then_is_not_stalled():
    room = Room()
    leg, _ = await room.pair()
    reads = room.sockets[Role.SERVER].reads
    for _ in range(10):
        reads.clear()
        sending = asyncio.ensure_future(leg.link.forward({"text": "x"}))
        await asyncio.sleep(0.8 * STALLS)
        assert not leg.over.done()
        reads.set()
        await sending
