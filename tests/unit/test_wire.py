"""What may be written to a receiver next: the peer's frames, the relay's own, or nothing any more."""

import pytest

from relay.rules.frames import CLOSE, PING, PONG
from relay.rules.wire import Wire


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_between_two_frames_a_control_frame_is_written_at_once(wire):
    assert wire.control(PONG, b"hi") == b"\x8a\x02hi"
    assert wire.forwarded(0) == b""
    assert wire.control(PING, b"") == b"\x89\x00"
    assert not wire.stops


def test_inside_a_frame_a_control_frame_waits_for_its_end(wire):
    assert wire.forwarded(10) == b""
    assert wire.control(PING, b"") == b""
    assert wire.control(PONG, b"hi") == b""
    assert wire.stops
    assert wire.forwarded(3) == b""
    assert wire.forwarded(0) == b"\x89\x00\x8a\x02hi"
    assert not wire.stops
    assert wire.forwarded(5) == b""


def test_of_two_pongs_that_wait_the_later_one_is_sent(wire):
    wire.forwarded(1)
    wire.control(PONG, b"old")
    wire.control(PONG, b"new")
    assert wire.forwarded(0) == b"\x8a\x03new"


def test_a_close_that_waits_comes_last_and_nothing_after_it(wire):
    wire.forwarded(1)
    wire.control(PONG, b"x")
    assert wire.control(CLOSE, b"\x03\xe8") == b""
    assert not wire.closed
    assert wire.control(PONG, b"late") == b""
    assert wire.control(CLOSE, b"\x03\xe9") == b""
    assert wire.takes_frames  # the rest of the frame
    assert wire.forwarded(0) == b"\x8a\x01x\x88\x02\x03\xe8"
    assert wire.closed
    assert not wire.takes_frames
    assert wire.control(PING, b"") == b""


def test_after_a_close_nothing_is_written(wire):
    assert wire.control(CLOSE, b"") == b"\x88\x00"
    assert (wire.closed, wire.over, wire.takes_frames, wire.unfinished) == (True, True, False, False)
    assert wire.control(CLOSE, b"") == b""
    assert wire.control(PONG, b"") == b""


def test_once_the_session_is_over_no_frame_begins_and_one_that_has_begun_is_ended(wire):
    wire.stop()
    assert not wire.takes_frames
    assert wire.stops

    begun = Wire()
    begun.forwarded(7)
    begun.stop()
    assert begun.takes_frames
    assert begun.unfinished
    begun.forwarded(0)
    assert not begun.takes_frames
    assert not begun.unfinished
    assert begun.control(CLOSE, b"") == b"\x88\x00"


def test_when_the_rest_of_a_frame_cannot_come_nothing_can_be_written(wire):
    wire.forwarded(7)
    wire.control(CLOSE, b"")
    wire.cut()
    assert wire.dead
    assert (wire.takes_frames, wire.unfinished) == (False, False)
    assert wire.control(PONG, b"") == b""


def test_when_the_peer_is_gone_between_two_frames_a_close_may_follow(wire):
    wire.forwarded(0)
    wire.cut()
    assert not wire.dead
    assert not wire.takes_frames
    assert wire.control(CLOSE, b"") == b"\x88\x00"


def test_what_is_dead_stays_dead(wire):
    wire.end()
    wire.cut()
    assert wire.dead
    assert wire.control(CLOSE, b"") == b""
    assert not wire.takes_frames
