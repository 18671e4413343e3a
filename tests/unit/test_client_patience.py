"""How long the client tries again, on a clock of the test's own."""

import itertools

import pytest

from relay.client.patience import FIRST_PAUSE, LAST_PAUSE, STEADY, Patience


def pauses(patience: Patience, now: float, held: float = 0.0) -> list[float]:
    """All pauses from `now` on until it gives up, where attempts fail at once."""
    made = []
    while (pause := patience.failed(now, held)) is not None:
        made.append(pause)
        now += pause
    return made


def test_pauses_grow_and_end_when_the_time_is_over() -> None:
    made = pauses(Patience(60), 1000.0)
    assert sum(made) == pytest.approx(60)
    assert made[0] <= FIRST_PAUSE
    assert max(made) <= LAST_PAUSE
    assert all(pause >= LAST_PAUSE / 2 for pause in made[6:-1])


def test_pauses_of_two_that_failed_at_once_differ() -> None:
    assert pauses(Patience(60), 0.0) != pauses(Patience(60), 0.0)


def test_no_time_is_one_attempt() -> None:
    assert Patience(0).failed(5.0, 1000.0) is None


@pytest.mark.parametrize(("held", "lasts"), [(STEADY + 1, True), (STEADY - 1, False)])
def test_only_failures_in_a_row_wear_it_out(held: float, lasts: bool) -> None:
    """So whoever waited an hour for the peer has all the time again when the relay then restarts."""
    patience = Patience(60)
    assert patience.untried
    ends = itertools.accumulate([0.0] + [held] * 20)
    assert all(patience.failed(now, held) is not None for now in ends) == lasts
    assert not patience.untried
