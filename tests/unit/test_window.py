"""Promises of `relay.rules.window`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.rules.window import FRAME_BYTES, Incoming, Outgoing, Verdict


def outgoing(window: int = 10_000, batch: int = 1_000) -> Outgoing:
    return Outgoing(window, batch)


def frame(size: int) -> bytes:
    return bytes(size)


def add(out: Outgoing, *sizes: int) -> None:
    for size in sizes:
        out.add(frame(size), size)


def sizes(batch) -> list[int]:
    return [len(each) for each in batch.frames]


def test_a_single_frame_goes_out_at_once():
    out = outgoing()
    assert out.next_batch() is None
    add(out, 5)
    assert sizes(out.next_batch()) == [5]
    assert out.next_batch() is None


def test_frames_that_wait_share_a_batch_up_to_its_size_and_stay_in_order():
    out = outgoing(batch=1_000)
    add(out, 400, 600, 1, 2_000, 3)
    assert [sizes(out.next_batch(flush=True)) for _ in range(4)] == [[400, 600], [1], [2_000], [3]]


def test_while_much_is_under_way_a_batch_waits_until_it_is_full():
    out = outgoing(batch=1_000)
    add(out, 250)
    out.next_batch()
    add(out, 10)
    assert out.next_batch() is None
    add(out, 990)
    assert sizes(out.next_batch()) == [10, 990]


def test_while_much_is_under_way_a_batch_waits_until_what_went_before_is_received():
    out = outgoing(batch=1_000)
    add(out, 250)
    out.next_batch()
    add(out, 10)
    out.acknowledge(received=1, frames=0, nbytes=0, seen=1)
    assert sizes(out.next_batch()) == [10]


def test_nothing_waits_when_it_is_to_be_flushed():
    out = outgoing(batch=1_000)
    add(out, 250)
    out.next_batch()
    add(out, 10)
    assert sizes(out.next_batch(flush=True)) == [10]


def test_the_window_holds_what_the_far_socket_has_not_taken():
    out = outgoing(window=1_000)
    add(out, 500)
    assert out.under_way == 500 + FRAME_BYTES
    assert out.has_room(1_000 - out.under_way - FRAME_BYTES)
    assert not out.has_room(1_000 - out.under_way - FRAME_BYTES + 1)
    out.next_batch()
    out.acknowledge(received=1, frames=0, nbytes=0, seen=1)
    assert not out.has_room(500)
    out.acknowledge(received=1, frames=1, nbytes=500, seen=1)
    assert out.has_room(500)


def test_empty_frames_fill_the_window_too():
    out = outgoing(window=10 * FRAME_BYTES)
    add(out, *[0] * 10)
    assert not out.has_room(0)


def test_one_frame_larger_than_the_window_goes_when_it_is_alone():
    out = outgoing(window=100)
    assert out.has_room(5_000)
    add(out, 5_000)
    assert not out.has_room(0)


def test_a_batch_whose_message_was_overtaken_is_lost_and_goes_out_again_with_those_after_it():
    out = outgoing(batch=100)
    add(out, 100, 100, 100)
    first, second, third = out.next_batch(), out.next_batch(), out.next_batch()
    out.acknowledge(received=1, frames=0, nbytes=0, seen=third.serial)
    assert out.next_batch() is second
    assert out.next_batch() is third
    assert out.next_batch() is None
    assert first.serial < second.serial < third.serial == out.serial


def test_a_batch_that_may_still_come_is_not_sent_again():
    out = outgoing(batch=100)
    add(out, 100, 100)
    first, second = out.next_batch(), out.next_batch()
    out.acknowledge(received=1, frames=0, nbytes=0, seen=first.serial)
    assert out.next_batch() is None
    assert second.serial


def test_a_later_message_without_frames_shows_that_the_last_batch_is_lost():
    out = outgoing()
    add(out, 1)
    batch = out.next_batch()
    probe = out.stamp()
    out.acknowledge(received=0, frames=0, nbytes=0, seen=probe)
    assert out.next_batch() is batch


def test_a_batch_that_could_not_be_sent_goes_out_again_before_what_waits():
    out = outgoing(batch=100)
    add(out, 100, 100)
    batch = out.next_batch()
    out.failed(batch)
    assert out.next_batch() is batch
    assert out.next_batch().number == 2


def test_a_batch_that_failed_and_was_received_all_the_same_does_not_go_out_again():
    out = outgoing()
    add(out, 1)
    batch = out.next_batch()
    out.acknowledge(received=1, frames=0, nbytes=0, seen=0)
    out.failed(batch)
    assert out.next_batch() is None
    assert not out.unreceived


def test_it_is_known_when_the_receiver_has_everything():
    out = outgoing()
    assert not out.unreceived
    add(out, 1)
    assert out.unreceived
    out.next_batch()
    assert out.unreceived
    out.acknowledge(received=1, frames=0, nbytes=0, seen=1)
    assert not out.unreceived


@pytest.mark.parametrize("claim", [{"received": 2}, {"frames": 2, "nbytes": 2}, {"seen": 2}])
def test_more_than_was_sent_can_not_be_acknowledged(claim):
    out = outgoing()
    add(out, 1)
    out.next_batch()
    with pytest.raises(ValueError, match="more is acknowledged than was sent"):
        out.acknowledge(**{"received": 1, "frames": 1, "nbytes": 1, "seen": 1} | claim)


def test_an_old_acknowledgement_takes_nothing_back():
    out = outgoing(batch=1)
    add(out, 1, 1)
    out.next_batch(), out.next_batch()
    out.acknowledge(received=2, frames=2, nbytes=2, seen=2)
    out.acknowledge(received=1, frames=1, nbytes=1, seen=1)
    assert out.under_way == 0
    assert not out.unreceived


def test_a_receiver_takes_batches_once_and_in_order():
    incoming = Incoming()
    assert incoming.receive(2) is Verdict.EARLY
    assert incoming.receive(1) is Verdict.NEXT
    assert incoming.receive(1) is Verdict.REPEATED
    assert incoming.receive(2) is Verdict.NEXT
    assert incoming.received == 2


def test_the_highest_serial_counts_as_seen():
    incoming = Incoming()
    for serial in (1, 3, 2):
        incoming.see(serial)
    assert incoming.seen == 3


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 300), max_size=60),
    st.integers(FRAME_BYTES, 1_500),
    st.integers(1, 400),
    st.randoms(use_true_random=False),
)
def test_over_a_transport_that_loses_repeats_and_reorders_every_frame_arrives_once_in_order(
    payloads, window, batch_bytes, random
):
    """Until all has arrived: one side does something, or the transport delivers something, at random."""
    out, incoming = Outgoing(window, batch_bytes), Incoming()
    frames = [bytes([number % 256]) * size for number, size in enumerate(payloads)]
    waiting, got = list(frames), []
    there: list[tuple] = []  # messages on their way to the receiver, then back
    back: list[tuple] = []
    unlucky = 300  # how often the transport may fail, so that the test ends
    highest = 0

    def put(way: list[tuple], message: tuple) -> None:
        nonlocal unlucky
        luck = random.random() if unlucky else 1.0
        unlucky -= luck < 0.5 and unlucky > 0
        for _ in range(0 if luck < 0.3 else 2 if luck < 0.4 else 1):
            way.insert(random.randint(0, len(way)) if luck < 0.5 else len(way), message)

    for _ in range(100_000):
        if not (waiting or out.unreceived or out.under_way):
            break
        what = random.randrange(4)
        if what == 0 and waiting and out.has_room(len(waiting[0])):
            out.add(waiting[0], len(waiting.pop(0)))
            highest = max(highest, out.under_way)
        elif what == 1:
            batch = out.next_batch()
            if batch is None:  # a question, so that the last batch isn't missed for ever
                put(there, (out.stamp(), None, ()))
            else:
                put(there, (batch.serial, batch.number, tuple(batch.frames)))
        elif what == 2 and there:
            serial, number, carried = there.pop(0)
            incoming.see(serial)
            if number is not None and incoming.receive(number) is Verdict.NEXT:
                got.extend(carried)
            put(back, (incoming.received, len(got), sum(map(len, got)), incoming.seen))
        elif what == 3 and back:
            out.acknowledge(*back.pop(0))
    assert got == frames
    assert highest <= max([window, *(size + FRAME_BYTES for size in payloads)])
