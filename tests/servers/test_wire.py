"""The relay's own frames on a spliced socket: never inside a frame of the peer, and never forgotten."""

import pytest

from relay import conf
from relay.links import Meter
from relay.rules.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.frames_oracle import slice_frames
from tests.servers.loopless import Server, small_buffers
from tests.test_frames import masked


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch):
    monkeypatch.setattr(conf, "current", small_buffers)


class Pair:
    """Two spliced sockets, and what their clients got."""

    def __init__(self, server):
        self.server = server
        self.source, self.target = server.connect(), server.connect()
        self.meter = Meter()
        assert self.source.splice(self.target, self.meter)
        assert self.target.splice(self.source, Meter())

    def send(self, socket, data):
        """Bytes of that socket's client."""
        socket.transport.kernel.arrive(data)
        while self.server.reactor.turn():
            pass

    def got(self, socket):
        """The frames that its client got so far, as opcode and payload; an incomplete one as its bytes."""
        while self.server.reactor.turn():
            pass
        frames = slice_frames(bytes(socket.transport.kernel.sent))
        return [(f.opcode, f.payload) if f.complete else f.raw for f in frames]

    def wait(self, seconds):
        """Let time pass, with what the server looks at each second."""
        for _ in range(int(seconds)):
            self.server.reactor.move_time(1)
            for socket in (self.source, self.target):
                if not socket.gone:
                    socket.check(self.server.reactor.now)


@pytest.fixture
def pair():
    server = Server()
    yield Pair(server)
    server.close()


FRAME = masked(BINARY, b"0123456789")
HALF, REST = FRAME[:11], FRAME[11:]
WHOLE = (BINARY, b"0123456789")


def test_a_pong_that_falls_due_inside_a_frame_waits_for_its_end(pair):
    pair.send(pair.source, HALF)
    pair.send(pair.target, masked(PING, b"?"))
    assert pair.got(pair.target) == [b"\x82\x0a01234"]
    pair.send(pair.source, REST)
    assert pair.got(pair.target) == [WHOLE, (PONG, b"?")]


def test_a_keepalive_ping_that_falls_due_inside_a_frame_waits_for_its_end(pair):
    pair.send(pair.source, HALF)
    pair.wait(25)
    assert pair.got(pair.target) == [b"\x82\x0a01234"]
    pair.send(pair.source, REST)
    assert pair.got(pair.target) == [WHOLE, (PING, b"")]


def test_the_time_for_an_answer_to_a_ping_begins_when_it_is_written(pair):
    """A slow sender's frame may last longer than a ping may go unanswered."""
    pair.server.ping_timeout = 10
    pair.send(pair.source, HALF)
    for byte in REST[:-1]:
        pair.wait(25)
        pair.send(pair.source, bytes((byte,)))
    assert not pair.target.gone
    pair.send(pair.source, REST[-1:])
    assert pair.got(pair.target) == [WHOLE, (PING, b"")]
    pair.wait(9)
    assert not pair.target.gone
    pair.wait(3)
    assert pair.target.gone


def test_a_close_that_falls_due_inside_a_frame_waits_for_its_end(pair):
    pair.send(pair.source, HALF)
    pair.target.close(4499, "over")
    assert pair.got(pair.target) == [b"\x82\x0a01234"]
    pair.send(pair.source, REST + FRAME)
    assert pair.got(pair.target) == [WHOLE, (CLOSE, b"\x11\x93over")]


@pytest.mark.parametrize("due", [PING, PONG, CLOSE])
def test_the_end_of_a_frame_and_the_next_one_in_one_read_let_it_out_between(pair, due):
    pair.send(pair.source, HALF)
    if due == PONG:
        pair.send(pair.target, masked(PING, b""))
    elif due == PING:
        pair.wait(25)
    else:
        pair.target.close(4499, "over")
    pair.send(pair.source, REST + FRAME + FRAME)
    got = pair.got(pair.target)
    assert got[0] == WHOLE
    assert got[1][0] == due
    assert got[2:] == ([] if due == CLOSE else [WHOLE, WHOLE])


def test_between_the_fragments_of_a_message_nothing_waits(pair):
    pair.send(pair.source, masked(TEXT, b"a", fin=False))
    pair.send(pair.target, masked(PING, b"?"))
    pair.send(pair.source, masked(CONTINUATION, b"b"))
    assert pair.got(pair.target) == [(TEXT, b"a"), (PONG, b"?"), (CONTINUATION, b"b")]


def test_a_pong_for_which_there_was_no_room_goes_out_when_there_is(pair):
    kernel = pair.target.transport.kernel
    kernel.room = 0
    pair.send(pair.source, masked(BINARY, bytes(2000)))
    pair.send(pair.target, masked(PING, b"?"))
    kernel.room = 2000
    assert [frame for frame in pair.got(pair.target) if frame == (PONG, b"?")] == []
    kernel.room = 1 << 20
    assert pair.got(pair.target) == [(BINARY, bytes(2000)), (PONG, b"?")]


def test_pings_of_a_peer_that_reads_nothing_fill_no_memory(pair):
    kernel = pair.target.transport.kernel
    kernel.room = 0
    pair.send(pair.source, masked(BINARY, bytes(2000)))
    for number in range(1000):
        pair.send(pair.target, masked(PING, b"%d" % number))
    assert pair.target.outlet.unsent_bytes < 3000
    kernel.room = 1 << 20
    assert pair.got(pair.target) == [(BINARY, bytes(2000)), (PONG, b"999")]


def test_a_receiver_whose_close_waits_is_ended_when_its_sender_breaks_the_protocol(pair):
    frame = masked(TEXT, b"fine" + b"\xff" + b"more")
    pair.send(pair.source, frame[:8])
    pair.target.close(4499, "over")
    pair.send(pair.source, frame[8:])
    assert pair.got(pair.target) == [b"\x81\x09fi"]
    assert pair.target.transport.kernel.write_ended
    assert pair.got(pair.source) == [(CLOSE, b"\x03\xefinvalid UTF-8 in a text message")]


def test_a_receiver_whose_close_waits_is_ended_when_its_sender_is_gone(pair):
    pair.send(pair.source, HALF)
    pair.target.close(4499, "over")
    pair.source.transport.kernel.hung_up = True
    assert pair.got(pair.target) == [b"\x82\x0a01234"]
    assert pair.target.transport.kernel.write_ended
    assert not pair.target.transport.kernel.closed  # it's read until it ends, too, so that nothing is reset


def test_a_receiver_whose_close_waits_for_too_long_is_given_up(pair):
    pair.send(pair.source, HALF)
    pair.target.close(4499, "over")
    pair.wait(small_buffers().close_seconds)
    assert pair.target.gone


def test_who_is_to_see_the_end_of_tcp_sees_it_after_the_frame_that_it_is_sending(pair):
    """It would send no more of it, and its peer would be left with half a frame, too."""
    pair.send(pair.target, HALF)
    frame = masked(TEXT, b"fine" + b"\xff" + b"more")
    pair.send(pair.source, frame[:8])
    pair.send(pair.source, frame[8:])
    pair.target.close(4410, "lost")
    assert pair.got(pair.target) == [b"\x81\x09fi"]
    assert not pair.target.transport.kernel.write_ended
    pair.send(pair.target, REST)
    assert pair.target.transport.kernel.write_ended
    assert pair.got(pair.source) == [WHOLE, (CLOSE, b"\x03\xefinvalid UTF-8 in a text message")]


@pytest.mark.parametrize("cut", range(len(FRAME) + 1))
def test_after_the_end_what_is_read_adds_nothing_but_the_end_of_a_frame(pair, cut):
    """Wherever in a frame its session ends."""
    pair.send(pair.source, FRAME + FRAME[:cut])
    left = pair.source.unsplice()
    pair.target.unsplice()
    header = 6  # two bytes and the mask: before those a frame has not begun
    begun = header <= cut < len(FRAME)
    assert (left is not None) == begun
    pair.send(pair.source, FRAME[cut:] + FRAME * 3)
    if left is not None:
        assert left.done()
    pair.target.close(1012, "restarting")
    delivered = 2 if begun or cut == len(FRAME) else 1
    assert pair.got(pair.target) == [WHOLE] * delivered + [(CLOSE, b"\x03\xf4restarting")]
    assert (pair.meter.frames, pair.meter.nbytes) == (delivered, 10 * delivered)


def test_a_message_before_a_broken_one_in_the_same_read_is_counted_right(pair):
    pair.send(pair.source, FRAME + masked(TEXT, b"fine" + b"\xff"))
    assert (pair.meter.frames, pair.meter.nbytes) == (1, 10)


def test_a_message_before_a_half_one_in_the_same_read_is_counted_right(pair):
    pair.send(pair.source, FRAME + HALF)
    assert (pair.meter.frames, pair.meter.nbytes) == (1, 10)
    pair.source.transport.kernel.hung_up = True
    pair.got(pair.target)
    assert (pair.meter.frames, pair.meter.nbytes) == (1, 10)


def test_who_is_heard_through_the_splice_is_not_pinged(pair):
    for _ in range(4):
        pair.wait(10)
        pair.send(pair.source, FRAME)
    assert pair.got(pair.source) == []
    assert (PING, b"") in pair.got(pair.target)


def test_a_sender_that_was_held_for_want_of_room_goes_on_when_there_is(pair):
    kernel = pair.target.transport.kernel
    kernel.room = 0
    pair.send(pair.source, masked(BINARY, bytes(2000)))
    pair.send(pair.source, FRAME)
    assert pair.source.transport.kernel.unread == FRAME  # it isn't read
    kernel.room = 1 << 20
    assert pair.got(pair.target) == [(BINARY, bytes(2000)), WHOLE]


def test_who_breaks_the_protocol_while_its_close_waits_is_ended_after_it(pair):
    pair.send(pair.target, HALF)  # so that nothing can be written to the source
    pair.send(pair.source, b"\xf2\x80abcd")
    assert not pair.source.transport.kernel.write_ended
    pair.send(pair.target, REST)
    assert pair.got(pair.source)[0] == WHOLE
    assert pair.got(pair.source)[1][0] == CLOSE
    assert pair.source.transport.kernel.write_ended


def test_a_close_that_comes_after_its_sender_is_gone_inside_a_frame_ends_tcp(pair):
    pair.send(pair.source, HALF)
    pair.source.transport.kernel.hung_up = True
    assert pair.got(pair.target) == [b"\x82\x0a01234"]
    assert not pair.target.transport.kernel.write_ended  # nobody has said why yet
    pair.target.close(4410, "lost")
    assert pair.got(pair.target) == [b"\x82\x0a01234"]
    assert pair.target.transport.kernel.write_ended


def test_who_sees_the_end_of_tcp_is_read_until_it_ends_too(pair):
    """However many reasons there are to end it: here its sender breaks the protocol, and then is gone."""
    bad = masked(TEXT, b"fine" + b"\xff" + b"more")
    pair.send(pair.source, bad[:8])
    pair.target.close(4410, "lost")
    pair.send(pair.source, bad[8:])
    kernel = pair.target.transport.kernel
    assert kernel.write_ended
    pair.source.transport.kernel.hung_up = True
    pair.got(pair.source)
    pair.send(pair.target, masked(BINARY, bytes(3000)) * 5)
    assert not kernel.unread
    assert not kernel.closed
    kernel.hung_up = True
    pair.got(pair.target)
    assert kernel.closed
    assert not kernel.cut_short


def test_a_record_does_not_wait_for_a_receiver_that_is_gone(pair):
    pair.send(pair.source, HALF)
    left = pair.source.unsplice()
    pair.target.transport.kernel.reset = True
    pair.got(pair.target)
    assert left.done()
    pair.send(pair.source, REST)
    assert (pair.meter.frames, pair.meter.nbytes) == (0, 0)
