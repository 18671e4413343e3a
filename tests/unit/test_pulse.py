"""Promises of `relay.rules.pulse`."""

import pytest

from relay.rules.pulse import (
    FIRST_QUESTION_SECONDS,
    LONGEST_LOOK_SECONDS,
    LONGEST_QUESTION_SECONDS,
    SHORTEST_LOOK_SECONDS,
    Pulse,
)

SILENT = 15.0


@pytest.fixture
def pulse() -> Pulse:
    return Pulse(SILENT, now=100.0)


def questions(pulse: Pulse, start: float, end: float, urgent: bool) -> list[float]:
    """When it asks, each question being sent at once and none answered."""
    now, asked = start, []
    while now < end:
        pulse.awake(now)
        asks, delay = pulse.next_look(now, urgent)
        assert SHORTEST_LOOK_SECONDS <= delay <= LONGEST_LOOK_SECONDS
        if asks:
            pulse.sent(now)
            asked.append(now - start)
        now += delay
    return asked


def test_what_waits_for_an_answer_is_asked_for_soon_and_then_less_and_less_often(pulse):
    asked = questions(pulse, 100.0, 110.0, urgent=True)
    gaps = [later - earlier for earlier, later in zip([0.0, *asked], asked, strict=False)]
    assert gaps[0] == pytest.approx(FIRST_QUESTION_SECONDS, abs=SHORTEST_LOOK_SECONDS)
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(LONGEST_QUESTION_SECONDS, abs=SHORTEST_LOOK_SECONDS)


def test_an_answer_makes_it_impatient_again(pulse):
    questions(pulse, 100.0, 110.0, urgent=True)
    pulse.heard(110.0)
    (first, *_) = questions(pulse, 110.0, 111.0, urgent=True)
    assert first == pytest.approx(FIRST_QUESTION_SECONDS, abs=SHORTEST_LOOK_SECONDS)


def test_an_idle_link_is_asked_five_times_before_it_counts_as_silent(pulse):
    assert questions(pulse, 100.0, 100.0 + SILENT, urgent=False) == pytest.approx([3, 6, 9, 12], abs=0.1)


def test_a_link_is_silent_when_nothing_was_heard_for_long_whatever_was_sent(pulse):
    pulse.sent(114.0)
    assert not pulse.is_silent(114.9)
    assert pulse.is_silent(115.0)
    pulse.heard(115.0)
    assert not pulse.is_silent(115.1)


def test_the_time_in_which_this_process_did_not_run_does_not_count(pulse):
    _, delay = pulse.next_look(100.0, urgent=False)
    pulse.awake(100.0 + delay + 20)
    assert not pulse.is_silent(100.0 + delay + 20)
    assert pulse.is_silent(100.0 + delay + 20 + SILENT)


def test_a_look_that_is_a_little_late_counts(pulse):
    _, delay = pulse.next_look(100.0, urgent=False)
    pulse.awake(100.0 + delay + LONGEST_LOOK_SECONDS)
    assert pulse.is_silent(100.0 + SILENT)


def test_nobody_is_left_to_answer_when_questions_go_out_for_half_the_time_without_one(pulse):
    assert not pulse.is_unanswered(200.0)
    pulse.sent(101.0)
    pulse.sent(108.0)
    assert not pulse.is_unanswered(101.0 + SILENT / 2 - 0.1)
    assert pulse.is_unanswered(101.0 + SILENT / 2)


@pytest.mark.parametrize("event", ["heard", "failed"])
def test_an_answer_and_a_failure_begin_that_time_anew(pulse, event):
    pulse.sent(101.0)
    pulse.heard(108.0) if event == "heard" else pulse.failed()
    assert not pulse.is_unanswered(109.0)
    pulse.sent(109.0)
    assert not pulse.is_unanswered(110.0)


def test_while_nothing_goes_out_it_can_not_be_told_whether_anyone_is_left(pulse):
    """Redis hangs: a question that went out before may have reached nobody."""
    pulse.sent(101.0)
    assert not pulse.is_unanswered(101.0 + 2 * LONGEST_QUESTION_SECONDS + SILENT)
