"""Promises of `relay.rules.flow`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.flow import Gauge, WaterMarks


def test_a_feeder_pauses_above_the_high_mark_and_not_at_it():
    gauge = Gauge(WaterMarks(high=10, low=4))
    assert not gauge.add(10)
    assert not gauge.paused
    assert gauge.add(1)
    assert gauge.paused


def test_a_paused_feeder_is_told_to_pause_only_once():
    gauge = Gauge(WaterMarks(high=10, low=4))
    assert gauge.add(11)
    assert not gauge.add(5)


def test_a_paused_feeder_goes_on_at_the_low_mark_and_not_above_it():
    gauge = Gauge(WaterMarks(high=10, low=4))
    gauge.add(11)
    assert not gauge.remove(6)
    assert gauge.remove(1)
    assert not gauge.paused


def test_a_feeder_that_never_paused_is_not_told_to_go_on():
    gauge = Gauge(WaterMarks(high=10, low=4))
    gauge.add(3)
    assert not gauge.remove(3)


def test_more_than_a_queue_holds_can_not_leave_it():
    gauge = Gauge(WaterMarks(high=10, low=4))
    gauge.add(3)
    with pytest.raises(ValueError, match="4 bytes can't leave a queue that holds 3"):
        gauge.remove(4)


@pytest.mark.parametrize(("high", "low"), [(1, 2), (10, -1)])
def test_water_marks_out_of_order_are_refused(high, low):
    with pytest.raises(ValueError, match="0 <= low <= high"):
        WaterMarks(high=high, low=low)


@given(st.lists(st.integers(0, 50)), st.integers(0, 100), st.integers(0, 100))
def test_a_feeder_that_obeys_never_holds_more_than_the_high_mark_and_one_item(sizes, one, other):
    marks = WaterMarks(high=max(one, other), low=min(one, other))
    gauge, queue = Gauge(marks), []
    for size in sizes:
        while gauge.paused:
            gauge.remove(queue.pop(0))
        gauge.add(size)
        queue.append(size)
        assert gauge.level == sum(queue) <= marks.high + size
