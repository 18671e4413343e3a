"""The rendezvous stores against a simple model: random joins, leaves, crashes and clock steps.

Time passes by shortening lifetimes, so nothing waits: `node_seconds` is far longer than the test.
"""

import asyncio
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from relay.rendezvous import Arrival, Full, Placement, Rendezvous
from relay.rendezvous.memory import MemoryRendezvous
from relay.rendezvous.redis import RedisRendezvous
from relay.rules.roles import Role

LIFETIME = 1_000.0
NODES = 3
SESSION_IDS = ("one", "two")


class ByHand(RedisRendezvous):
    """Renews and frees when it's told, instead of by the clock."""

    def _start(self) -> None:
        pass

    async def renew(self) -> None:
        for seat in self._seats.values():
            seat.due = 0.0
        await self._tick()

    async def free(self) -> None:
        await self._free_all()


@dataclass
class Seat:
    """A place as the model knows it."""

    arrival: Arrival
    session: UUID
    node: int
    expires_at: float
    paired: bool = False


class Model:
    """The rules of `Rendezvous`, as plainly as they can be written."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seats: dict[str, dict[Role, Seat]] = {name: {} for name in SESSION_IDS}

    def join(self, name: str, arrival: Arrival, node: int) -> tuple[Role, UUID | None, UUID | None] | None:
        """Role, peer and the session that is replaced; None if it's full. `seat` then takes the place."""
        seats = self.seats[name]
        if not seats:
            return arrival.role or Role.CLIENT, None, None
        first = next(iter(seats.values()))
        if len(seats) == 1 and first.paired:
            return arrival.role or Role.CLIENT, None, first.session
        role = arrival.role or next((role for role in Role if role not in seats), None)
        if role is None:
            return None
        if role in seats:
            if arrival.replaces(seats[role].arrival):
                return role, None, seats[role].session
            return None
        return role, first.arrival.leg, None

    def seat(self, name: str, arrival: Arrival, node: int, placement: Placement) -> None:
        if placement.peer is None:
            self.seats[name] = {}
        seats = self.seats[name]
        seats[placement.role] = Seat(arrival, placement.session, node, self.now + LIFETIME)
        if placement.peer is not None:
            for seat in seats.values():
                seat.paired = True

    def leave(self, name: str, session: UUID) -> None:
        self.seats[name] = {r: seat for r, seat in self.seats[name].items() if seat.session != session}

    def step(self, seconds: float) -> None:
        self.now += seconds
        for name, seats in self.seats.items():
            self.seats[name] = {r: seat for r, seat in seats.items() if seat.expires_at > self.now}

    def renew(self, name: str, role: Role, held: Seat) -> bool:
        """Whether the place is still (or again) that of the seat `held`."""
        seats = self.seats[name]
        if role in seats:
            if seats[role].arrival.leg != held.arrival.leg:
                return False
        elif any(seat.session != held.session for seat in seats.values()):
            return False
        else:
            seats[role] = held
        seats[role].expires_at = self.now + LIFETIME
        return True


class Machine(RuleBasedStateMachine):
    """Drives one kind of store and the model with the same steps."""

    url = ""  # of Redis; empty for the store in memory
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.superseded: list[UUID] = []
        self.held: list[dict[UUID, tuple[str, Role, Seat]]] = [{} for _ in range(NODES)]
        if self.url:
            self.redis = Redis.from_url(self.url)
            self.run(self.redis.flushall())
            self.run(self.redis.mset({f"relay:{{{bucket}}}:known": 1 for bucket in range(16)}))
        self.stores = [self.new_store() for _ in range(NODES if self.url else 1)]

    def run(self, work):
        return self.loop.run_until_complete(work)

    def new_store(self) -> Rendezvous:
        store = ByHand(self.url, LIFETIME, answer_seconds=5) if self.url else MemoryRendezvous()
        store.on_superseded = self.superseded.append
        return store

    def teardown(self) -> None:
        for store in self.stores:
            self.run(store.close())
        if self.url:
            self.run(self.redis.aclose())
        self.loop.close()

    nodes = st.integers(0, NODES - 1)

    @rule(
        target=sessions,
        node=nodes,
        name=st.sampled_from(SESSION_IDS),
        subject=st.sampled_from([None, "alice", "bob"]),
        role=st.sampled_from([None, *Role]),
    )
    def join(self, node, name, subject, role):
        node %= len(self.stores)
        arrival = Arrival(uuid4(), subject, role, f"channel of node {node}")
        expected = self.model.join(name, arrival, node)
        try:
            placement = self.run(self.stores[node].join(name, arrival))
        except Full:
            assert expected is None
            return None
        assert expected == (placement.role, placement.peer, placement.replaced)
        if placement.peer is not None:
            peer = self.model.seats[name][placement.role.other]
            assert placement.session == peer.session
            assert placement.peer_channel == peer.arrival.channel
        self.model.seat(name, arrival, node, placement)
        seat = self.model.seats[name][placement.role]
        self.held[node][arrival.leg] = (name, placement.role, seat)
        if placement.peer is not None:
            for number, held in enumerate(self.held):
                for _, _, other in held.values():
                    if other.session == placement.session:
                        other.paired = True
                        self.stores[number].paired(other.session)
        return node, name, placement.session

    def end(self, node: int, name: str, session: UUID) -> None:
        held = self.held[node]
        self.held[node] = {leg: each for leg, each in held.items() if each[2].session != session}
        self.stores[node].end(name, session)
        if self.url:
            self.run(self.stores[node].free())
        self.model.leave(name, session)

    @rule(session=consumes(sessions))
    def leave(self, session):
        """A session ends on the node of one of its legs, which may be dead by then, or have lost it."""
        if session is not None:
            self.end(*session)

    @rule(node=nodes)
    def crash(self, node):
        """Its places stay until their time is over; in memory they go with the process."""
        node %= len(self.stores)
        self.held[node] = {}
        self.run(self.stores[node].close())
        self.stores[node] = self.new_store()
        if not self.url:
            self.model = Model()

    @rule(seconds=st.sampled_from([LIFETIME / 4, LIFETIME / 2, LIFETIME + 1]))
    def clock_step(self, seconds):
        if self.url:
            self.run(self.age(seconds))
            self.model.step(seconds)

    async def age(self, seconds: float) -> None:
        async for key in self.redis.scan_iter("relay:*:seat:*"):
            lifetime = await self.redis.pttl(key)
            assert 0 < lifetime <= 1000 * LIFETIME, "a dead node would hold its seat for ever"
            left = lifetime - round(1000 * seconds)
            # Rounded to what the model has: the test itself takes less than ten seconds of real time.
            await (self.redis.pexpire(key, left) if left > 10_000 else self.redis.delete(key))

    @rule(node=nodes)
    def renew(self, node):
        if not self.url:
            return
        del self.superseded[:]
        held = list(self.held[node].values())
        self.run(self.stores[node].renew())
        lost = {seat.session for name, role, seat in held if not self.model.renew(name, role, seat)}
        assert set(self.superseded) == lost
        for name, _, seat in held:
            if seat.session in lost:
                self.end(node, name, seat.session)

    @invariant()
    def two_places_never_belong_to_two_sessions(self):
        for seats in self.model.seats.values():
            assert len({seat.session for seat in seats.values()}) <= 1


@pytest.fixture(params=["memory", "redis"])
def machine(request) -> type[Machine]:
    class Kind(Machine):
        url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    return Kind


@pytest.mark.timeout(300)
def test_a_store_does_what_the_model_does(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
