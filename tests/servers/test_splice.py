"""Two sockets spliced below ASGI: exact, in order, bounded, and with a clean end. On TCP, and over TLS."""

import itertools
import os
import struct
import time

import pytest

from tests.rows import sums
from tests.servers.conftest import OURS, get, resident_mib
from tests.servers.wire import BINARY, CLOSE, PING, PONG, TEXT, Wire, frame

MIB = 2**20
names = (f"name-{number}" for number in itertools.count())


@pytest.fixture
def pair(server):
    """Two clients whose sockets are spliced to each other."""
    name = next(names)
    before = len(server.lines("spliced"))
    with server.connect(f"/splice?{name}") as one, server.connect(f"/splice?{name}") as two:
        server.wait_until(lambda: len(server.lines("spliced")) == before + 2, "splice")
        yield one, two


def ended(server, number, after=0):
    """What the first (0) or second (1) socket's application saw at its end."""

    def seen():
        return [line for line in server.lines("ended") if line["number"] == number][after:]

    server.wait_until(seen, "end")
    return seen()[-1]


def ends_having_carried(server, one, before, *, there, back=()):
    """The first client leaves, and so many messages are counted in each direction, with their bytes."""
    one.send(frame(CLOSE, b"\x03\xe8"))
    told = ended(server, 0, before[0])
    assert told["clean"]
    assert list(zip(told["frames"], told["nbytes"], strict=True)) == [sums(there), sums(back)]


@pytest.fixture
def before(server):
    """How many sockets of each number have ended before this test."""
    return [sum(line["number"] == number for line in server.lines("ended")) for number in (0, 1)]


def test_frames_of_all_sizes_cross_both_ways_and_are_counted(server, pair, before):
    one, two = pair
    sizes = [0, 1, 125, 126, 1000, 65535, 65536, MIB]
    payloads = [os.urandom(size) for size in sizes]
    for there, back in zip(payloads, reversed(payloads), strict=True):
        one.send(frame(BINARY, there))
        assert two.next_frame() == (0x80 | BINARY, there)
        two.send(frame(BINARY, back))
        assert one.next_frame() == (0x80 | BINARY, back)
    one.send(frame(TEXT, "für alle".encode()) + frame(CLOSE, b"\x03\xe9done"))
    assert two.message() == "für alle".encode()
    assert two.close_frame() == (4410, "the peer left")
    told = ended(server, 0, before[0])
    assert (told["code"], told["reason"], told["clean"]) == (1001, "done", True)
    assert told["frames"] == [9, 8]
    assert told["nbytes"] == [sum(sizes) + 9, sum(sizes)]


def test_cut_anywhere_they_arrive_the_same(server, pair, before):
    one, two = pair
    messages = [b"", b"a" * 3, b"b" * 126, b"c" * 300]
    data = b"".join(frame(BINARY, message) for message in messages)
    cuts = range(0, len(data), 7)
    for cut in cuts:
        one.send(data[:cut])
        one.send(data[cut:])
        assert [two.message() for _ in messages] == messages
    ends_having_carried(server, one, before, there=messages * len(cuts))


def test_fragmentation_is_kept_with_pings_answered_between(server, pair, before):
    one, two = pair
    one.send(frame(TEXT, b"a", fin=False) + frame(PING, b"?") + frame(0, b"", fin=False) + frame(0, b"b"))
    assert [two.next_frame() for _ in range(3)] == [(TEXT, b"a"), (0, b""), (0x80, b"b")]
    assert one.next_frame() == (0x80 | PONG, b"?")
    ends_having_carried(server, one, before, there=[b"ab"])


def test_it_starts_with_what_was_half_received_and_loses_nothing(server, before):
    """The ordinary path ends with the message that it has begun; a header it has begun is handed over."""
    name = next(names)
    first, second, third = (frame(BINARY, bytes([n]) * 300) for n in (1, 2, 3))
    with server.connect(f"/splice?{name}") as one:
        one.send(first + second[:100])
        with server.connect(f"/splice?{name}") as two:
            assert two.message() == b"\x01" * 300
            one.send(second[100:] + third[:3])
            assert two.message() == b"\x02" * 300
            one.send(third[3:] + first)
            assert two.message() == b"\x03" * 300
            assert two.message() == b"\x01" * 300
            # Those that went the ordinary way count as well.
            ends_having_carried(server, one, before, there=[bytes(300)] * 4)


def test_it_starts_after_what_the_application_has_not_taken(server, before):
    name = next(names)
    sent = [bytes([n]) * 300 for n in range(4)]
    with server.connect(f"/splice?{name}") as one:
        one.send(b"".join(frame(BINARY, payload) for payload in sent[:3]) + frame(PING, b"read?"))
        assert one.next_frame() == (0x80 | PONG, b"read?")
        with server.connect(f"/splice?{name}") as two:
            one.send(frame(BINARY, sent[3]))
            assert [two.message() for _ in sent] == sent
            ends_having_carried(server, one, before, there=sent)


def test_it_starts_with_a_sender_that_never_pauses(server, before):
    """The ordinary path ends with the message that it has begun, however many are there behind it."""
    name = next(names)
    frames = [frame(BINARY, bytes([n]) * 300) for n in range(200)]
    spliced = len(server.lines("spliced"))
    ordinary = len([line for line in server.lines("ordinary") if line["number"] == 0])
    with server.connect(f"/splice?{name}") as one:
        one.send(frames[0] + frames[1][:100])
        with server.connect(f"/splice?{name}") as two:
            assert two.message() == bytes(300)
            one.send(frames[1][100:] + b"".join(frames[2:]) + frames[0][:50])
            for n in range(1, 200):
                assert two.message() == bytes([n]) * 300
            server.wait_until(lambda: len(server.lines("spliced")) == spliced + 2, "splice")
            one.send(frames[0][50:])
            assert two.message() == bytes(300)
            ends_having_carried(server, one, before, there=[bytes(300)] * 201)
    lines = [line for line in server.lines("ordinary") if line["number"] == 0]
    assert len(lines) == ordinary + 2


def test_a_peer_that_reads_nothing_stops_its_sender_and_memory_is_bounded(server, pair, before):
    one, two = pair
    memory = resident_mib(server)
    data = frame(BINARY, bytes(65536), mask=b"abcd") * 1600
    sent = one.push(data, patience=1)
    assert sent < 24 * MIB  # what four kernel buffers take
    assert resident_mib(server) - memory < 4
    # It's held back, not lost.
    whole, rest = divmod(sent, 65536 + 14)
    for _ in range(whole):
        assert two.message() == bytes(65536)
    one.send(data[sent : sent + 65536 + 14 - rest])
    assert two.message() == bytes(65536)
    ends_having_carried(server, one, before, there=[bytes(65536)] * (whole + 1))


def test_a_pong_waits_for_the_end_of_a_half_forwarded_frame(server, pair, before):
    one, two = pair
    data = frame(BINARY, b"x" * 50_000)
    one.send(data[:1000])
    half = b""
    while len(half) < 900:
        half += two.socket.recv(65536)
    two.send(frame(PING, b"1") + frame(PING, b"2"))
    assert two.silent(0.3)
    one.send(data[1000:])
    two.buffer = half + two.buffer
    assert two.next_frame() == (0x80 | BINARY, b"x" * 50_000)
    assert two.next_frame() == (0x80 | PONG, b"2")  # the latest
    ends_having_carried(server, one, before, there=[bytes(50_000)])


def test_a_close_waits_for_the_end_of_a_half_forwarded_frame_and_nothing_else_gets_through(
    server, pair, before
):
    one, two = pair
    data = frame(BINARY, b"x" * 50_000)
    one.send(data[:1000])
    half = b""
    while len(half) < 900:
        half += two.socket.recv(65536)
    two.send(frame(CLOSE, b"\x03\xe8"))
    assert ended(server, 1, before[1])["code"] == 1000
    one.send(data[1000:] + frame(BINARY, b"too late"))
    two.buffer = half + two.buffer
    assert two.next_frame() == (0x80 | BINARY, b"x" * 50_000)
    assert two.next_frame() == (0x80 | CLOSE, b"\x03\xe8")
    assert two.ends(1.5)
    assert one.close_frame() == (4410, "the peer left")
    assert one.ends(1.5)


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_a_half_forwarded_frame_whose_rest_never_comes_ends_the_connection(server, pair, before, how):
    one, two = pair
    one.send(frame(BINARY, b"x" * 50_000)[:1000])
    half = b""
    while len(half) < 900:
        half += two.socket.recv(65536)
    if how == "reset":
        one.reset()
        told = ended(server, 0, before[0])
        assert (told["code"], told["clean"]) == (1006, False)
        assert told["nbytes"] == [0, 0], "a message that never ended isn't counted"
        assert two.ends(1.5)
    else:
        two.send(frame(CLOSE, b"\x03\xe8"))
        started = time.monotonic()
        assert two.ends(4)
        assert time.monotonic() - started > 1  # RELAY_CLOSE_SECONDS is 2


BAD = {
    "too big": (frame(BINARY, bytes(MIB + 1))[:2000], 1009),
    "too big in fragments": (frame(BINARY, bytes(MIB), fin=False) + frame(0, b"x"), 1009),
    "not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "not masked": (b"\x82\x01x", 1002),
    "reserved bit": (b"\xc2" + frame(BINARY, b"x")[1:], 1002),
    "nothing to continue": (frame(0x0, b"x"), 1002),
    "close with half a code": (frame(CLOSE, b"x"), 1002),
    "close with a bad code": (frame(CLOSE, struct.pack("!H", 1006)), 1002),
}


@pytest.mark.parametrize("bad", BAD)
def test_who_breaks_a_rule_is_told_which_after_what_was_good_has_passed(server, pair, before, bad):
    one, two = pair
    data, code = BAD[bad]
    one.send(frame(BINARY, b"good") + data)
    assert one.close_frame()[0] == code
    assert one.ends(1.5)
    assert two.message() == b"good"
    told = ended(server, 0, before[0])
    assert (told["code"], told["clean"]) == (code, False)
    assert (told["frames"], told["nbytes"]) == ([1, 0], [4, 0])
    if bad != "too big in fragments":
        assert two.close_frame() == (4410, "the peer left")


def test_many_small_frames_keep_their_order(server, pair, before):
    one, two = pair
    count = 50_000
    data = b"".join(frame(BINARY, struct.pack("!I", n), mask=b"\x01\x02\x03\x04") for n in range(count))
    one.push(data[: len(data) // 2], patience=1)
    one.socket.settimeout(20)
    sent = len(data) // 2
    got = []
    view = memoryview(data)
    one.send(view[sent:])
    while len(got) < count:
        got.append(struct.unpack("!I", two.message())[0])
    assert got == list(range(count))
    ends_having_carried(server, one, before, there=[bytes(4)] * count)


CUT_OFF = {
    "within a frame": frame(BINARY, bytes(5000))[:1000],
    "between fragments": frame(BINARY, bytes(50), fin=False),
    "within a header": frame(BINARY, bytes(5000))[:5],
    "within a fragment": frame(BINARY, bytes(50), fin=False) + frame(0, bytes(300))[:100],
}


@pytest.mark.parametrize("where", CUT_OFF)
def test_who_drops_within_a_message_is_billed_for_the_whole_ones_of_the_same_read(
    server, pair, before, where
):
    one, two = pair
    one.send(frame(BINARY, b"before"))
    assert two.message() == b"before"
    one.send(frame(TEXT, b"whole") + frame(BINARY, b"") + CUT_OFF[where])
    assert two.message() == b"whole"
    assert two.message() == b""
    if where == "between fragments":
        assert two.next_frame() == (BINARY, bytes(50))
    one.reset()
    told = ended(server, 0, before[0])
    assert (told["code"], told["clean"]) == (1006, False)
    assert (told["frames"], told["nbytes"]) == ([3, 0], [11, 0])


def test_nothing_is_handed_over_after_the_end_of_a_session(server, before):
    """The application ends it; the sockets are open still, and what comes in is read and thrown away."""
    name = next(names)
    spliced = len(server.lines("spliced"))
    with server.connect(f"/splice?{name}") as one, server.connect(f"/splice?{name}") as two:
        server.wait_until(lambda: len(server.lines("spliced")) == spliced + 2, "splice")
        one.send(frame(BINARY, b"in time"))
        assert two.message() == b"in time"
        assert get(server, f"/unsplice?{name}").status_code == 200
        one.send(frame(BINARY, b"too late") + frame(PING, b"still here"))
        two.send(frame(BINARY, b"too late") + frame(PING, b"still here"))
        for client in (one, two):
            # Answered after the message, which has been read by now.
            assert client.next_frame() == (0x80 | PONG, b"still here")
        ends_having_carried(server, one, before, there=[b"in time"])
        assert two.close_frame() == (4410, "the peer left")


def test_a_socket_that_is_held_for_two_reasons_is_not_read_when_one_of_them_goes(start):
    """One message alone fills the queue to the application, and the socket waits to be spliced as well."""
    server = start(OURS, RELAY_READ_HIGH_BYTES="1024", RELAY_READ_LOW_BYTES="0")
    first, large = frame(BINARY, b"first"), frame(BINARY, bytes(20_000))
    with Wire(server.port, "/splice?held") as one:
        one.send(first + large[:100])
        with Wire(server.port, "/splice?held") as two:
            assert two.message() == b"first"
            one.send(large[100:] + frame(BINARY, b"spliced") * 500)
            assert two.message() == bytes(20_000)
            for _ in range(500):
                assert two.message() == b"spliced"
    assert len([line for line in server.lines("ordinary") if line["number"] == 0]) == 2
