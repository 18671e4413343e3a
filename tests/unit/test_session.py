"""Promises of `relay.rules.lifecycle`: the life of a session, without I/O."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.closing import Close, CloseReason
from relay.rules.lifecycle import ENDINGS, Session, State, TransitionError
from relay.rules.roles import Role


def waiting(now: float = 0.0) -> Session:
    return Session(uuid4(), "s", Role.CLIENT, now)


def paired(now: float = 0.0) -> Session:
    session = waiting(now)
    session.pair(Role.SERVER, now)
    return session


MAKE = {State.WAITING: waiting, State.PAIRED: paired}


def test_a_session_waits_until_the_other_role_comes():
    session = waiting()
    assert session.state is State.WAITING
    session.pair(Role.SERVER, 1.0)
    assert session.state is State.PAIRED
    assert session.roles == set(Role)


def test_the_same_role_can_not_come_twice():
    with pytest.raises(TransitionError, match="a client can't join"):
        waiting().pair(Role.CLIENT, 1.0)


def test_a_third_leg_has_no_place():
    with pytest.raises(TransitionError, match="a server can't join a session that is paired"):
        paired().pair(Role.SERVER, 1.0)


def test_nobody_joins_a_closed_session():
    session = waiting()
    session.end(Close.because(CloseReason.PEER_LEFT), 1.0)
    with pytest.raises(TransitionError, match="closed"):
        session.pair(Role.SERVER, 2.0)


@pytest.mark.parametrize(("state", "reason"), [(s, r) for s, rs in ENDINGS.items() for r in sorted(rs)])
def test_each_ending_of_the_table_closes_the_session(state, reason):
    session = MAKE[state]()
    assert session.end(Close.because(reason), 3.0)
    assert session.state is State.CLOSED
    assert session.close == Close.because(reason)
    assert session.closed_at == 3.0


@pytest.mark.parametrize(
    ("state", "reason"),
    [(s, r) for s in MAKE for r in CloseReason if r not in ENDINGS[s]],
)
def test_no_other_reason_does(state, reason):
    session = MAKE[state]()
    with pytest.raises(TransitionError, match=f"{reason} can't end a session that is {state}"):
        session.end(Close.because(reason), 3.0)
    assert session.state is state


def test_some_ends_are_only_for_one_who_waits_and_some_only_for_a_pair():
    waits, pair = ENDINGS[State.WAITING], ENDINGS[State.PAIRED]
    assert waits - pair == {CloseReason.WAIT_TIMEOUT}
    assert pair - waits == {CloseReason.IDLE_TIMEOUT, CloseReason.STALLED, CloseReason.LINK_LOST}


def test_the_first_reason_stands():
    session = paired()
    assert session.end(Close.because(CloseReason.PEER_LOST), 1.0)
    assert not session.end(Close.because(CloseReason.REPLACED), 2.0)
    assert session.close == Close.because(CloseReason.PEER_LOST)
    assert session.closed_at == 1.0


def test_a_refusal_is_never_the_end_of_a_session():
    ends = frozenset().union(*ENDINGS.values())
    assert frozenset(CloseReason) - ends == {
        CloseReason.UNAUTHORIZED,
        CloseReason.FORBIDDEN,
        CloseReason.SESSION_FULL,
    }


def test_waiting_and_paired_time_are_counted_apart():
    session = waiting(10.0)
    assert session.waiting_ms(12.5) == 2500
    assert session.paired_ms(12.5) == 0
    session.pair(Role.SERVER, 13.0)
    assert session.paired_ms(14.0) == 1000
    session.end(Close.because(CloseReason.PEER_LEFT), 20.25)
    assert (session.waiting_ms(99.0), session.paired_ms(99.0)) == (3000, 7250)


@pytest.mark.parametrize(("seconds", "milliseconds"), [(1.0004, 1000), (1.0006, 1001)])
def test_durations_are_rounded_to_the_nearest_millisecond(seconds, milliseconds):
    session = waiting(0.0)
    session.pair(Role.SERVER, seconds)
    session.end(Close.because(CloseReason.PEER_LEFT), 2 * seconds)
    assert (session.waiting_ms(9.0), session.paired_ms(9.0)) == (milliseconds, milliseconds)


def test_a_session_that_never_paired_has_waited_until_its_end():
    session = waiting(1.0)
    session.end(Close.because(CloseReason.WAIT_TIMEOUT), 301.0)
    assert (session.waiting_ms(999.0), session.paired_ms(999.0)) == (300_000, 0)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_duration_is_ever_negative(opened, paired_at, closed):
    session = waiting(opened)
    session.pair(Role.SERVER, paired_at)
    session.end(Close.because(CloseReason.PEER_LEFT), closed)
    assert session.waiting_ms(closed) >= 0
    assert session.paired_ms(closed) >= 0
