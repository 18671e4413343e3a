"""Promises of every rendezvous store; the suite runs over each of them."""

from uuid import UUID, uuid4

import pytest

from relay.rendezvous import Arrival, Full, Rendezvous
from relay.rendezvous.memory import MemoryRendezvous
from relay.roles import Role


@pytest.fixture(params=[MemoryRendezvous])
def store(request) -> Rendezvous:
    return request.param()


def arrival(subject: str | None = "alice", role: Role | None = None) -> Arrival:
    return Arrival(uuid4(), subject, role)


async def test_the_first_leg_without_a_role_is_the_client_and_the_second_the_server(store):
    one, two = arrival(), arrival()
    first = await store.join("s", one)
    second = await store.join("s", two)
    assert (first.role, first.peer) == (Role.CLIENT, None)
    assert (second.role, second.peer) == (Role.SERVER, one.leg)
    assert first.session == second.session


@pytest.mark.parametrize("role", Role)
async def test_a_token_with_a_role_takes_that_place(store, role):
    assert (await store.join("s", arrival(role=role))).role is role
    assert (await store.join("s", arrival("bob", role.other))).role is role.other


@pytest.mark.parametrize("role", Role)
async def test_a_leg_without_a_role_takes_the_place_that_is_free(store, role):
    await store.join("s", arrival(role=role))
    assert (await store.join("s", arrival("bob"))).role is role.other


async def test_a_third_leg_finds_it_full(store):
    await store.join("s", arrival())
    await store.join("s", arrival())
    with pytest.raises(Full):
        await store.join("s", arrival())


@pytest.mark.parametrize(
    ("seated", "comes"),
    [
        (arrival("alice", Role.CLIENT), arrival("mallory", Role.CLIENT)),
        (arrival(None, Role.CLIENT), arrival(None, Role.CLIENT)),
        (arrival("alice"), arrival("alice", Role.CLIENT)),
    ],
    ids=["another subject", "no subject", "the seated token names no role"],
)
async def test_only_the_same_participant_can_replace(store, seated, comes):
    await store.join("s", seated)
    with pytest.raises(Full):
        await store.join("s", comes)


@pytest.mark.parametrize("peer_is_there", [False, True])
async def test_the_same_subject_in_the_same_role_opens_a_fresh_session(store, peer_is_there):
    old = await store.join("s", arrival("alice", Role.CLIENT))
    if peer_is_there:
        await store.join("s", arrival("bob", Role.SERVER))
    new = await store.join("s", arrival("alice", Role.CLIENT))
    assert new.replaced == old.session != new.session
    assert new.peer is None
    back = await store.join("s", arrival("bob", Role.SERVER))
    assert back.session == new.session


async def test_an_ended_session_frees_its_id_for_a_new_one(store):
    old = await store.join("s", arrival())
    store.end("s", old.session)
    new = await store.join("s", arrival())
    assert new.session != old.session
    assert new.role is Role.CLIENT


async def test_the_end_of_an_old_session_leaves_the_new_one_alone(store):
    old = await store.join("s", arrival("alice", Role.CLIENT))
    new = await store.join("s", arrival("alice", Role.CLIENT))
    store.end("s", old.session)
    assert (await store.join("s", arrival("bob"))).session == new.session


async def test_ending_what_nobody_holds_changes_nothing(store):
    store.end("s", UUID(int=0))
    assert (await store.join("s", arrival())).peer is None


async def test_sessions_of_other_ids_have_nothing_to_do_with_each_other(store):
    assert (await store.join("s", arrival())).session != (await store.join("t", arrival())).session
