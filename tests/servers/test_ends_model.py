"""However, wherever and by whomever a spliced session is ended: what its receivers get, and what is recorded.

A model of the whole path below ASGI: real protocols, splices, forwarders and Twisted's transports, with
kernels that take what they are told to take. The streams of both sides are cut anywhere; the session is ended
after any step, from any side; the kernels are writable or not.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import conf
from relay.links import Meter
from relay.rules.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT
from relay.servers.daphne.websocket import WebSocket
from tests.frames_oracle import slice_frames, unmasked
from tests.servers.loopless import Server, small_buffers
from tests.test_frames import masked

END = 4499, "closed_by_operator"
"""What the session ends with where the relay ends it; which reason it is makes no difference down here."""

PEER_LOST = 4410, "peer_lost"

Frame = tuple[str, int]
"""What a client sends, and how many bytes of it."""


@pytest.fixture(scope="module", autouse=True)
def _small_buffers():
    patch = pytest.MonkeyPatch()
    patch.setattr(conf, "current", small_buffers)
    yield
    patch.undo()


@dataclass
class Client:
    """One client: what it sends, how far it is, and what it does once it is told that the session closes."""

    socket: WebSocket
    frames: list[bytes]
    """As sent, masked. What is broken is the last."""
    manner: str
    """`answers`: ends its frame and sends a close; `goes on`: sends all it has; `silent`: nothing more."""
    fed: int = 0
    gone: bool = False
    stopped: bool = False
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for frame in self.frames:
            self.ends.append(len(frame) + (self.ends[-1] if self.ends else 0))
        self.stream = b"".join(self.frames)
        self.closes = bool(self.frames) and self.frames[-1][0] == 0x80 | CLOSE
        self.kernel = self.socket.transport.kernel

    def feed(self, size: int) -> None:
        """The next bytes of its stream reach the relay's kernel."""
        if not self.gone and not self.stopped:
            self.kernel.arrive(self.stream[self.fed : self.fed + size])
            self.fed = min(len(self.stream), self.fed + size)
            # Nobody sends anything after a close of their own.
            self.stopped = self.closes and self.fed == len(self.stream)

    def obey(self) -> None:
        """Once it has read the relay's close frame, or the end of TCP."""
        if self.kernel.write_ended:
            if self.manner == "goes on":
                self.feed(len(self.stream))
            self.kernel.hung_up = True
            return
        if self.stopped or self.gone or not any(f.opcode == CLOSE for f in self.received()):
            return
        if self.manner == "answers":
            end = next((end for end in self.ends if end >= self.fed), self.fed)
            self.feed(end - self.fed)
            self.kernel.arrive(masked(CLOSE, b"\x03\xe8"))
        elif self.manner == "goes on":
            self.feed(len(self.stream))
        self.stopped = True

    def received(self) -> list[Any]:
        return list(slice_frames(bytes(self.kernel.sent)))


class Session:
    """Both sides, and what `relay.sessions` does about their ends."""

    def __init__(self, server: Server, streams: list[list[Frame]], manners: list[str]) -> None:
        self.server = server
        self.meters = [Meter(), Meter()]
        sockets = [server.connect(), server.connect()]
        self.clients = [
            Client(socket, [encode(frame, number) for number, frame in enumerate(frames)], manner)
            for socket, frames, manner in zip(sockets, streams, manners, strict=True)
        ]
        for here, there, meter in zip(sockets, sockets[::-1], self.meters, strict=True):
            assert here.splice(there, meter)
        self.close: tuple[int, str] | None = None
        self.ended_by: int | None = None
        self.told = [False, False]
        self._halves: list[Any] = []
        self.record: list[tuple[int, int]] | None = None
        self.was_open = [False, False]
        self.patience_is_over = False
        """Time passed in which the relay may have given somebody up."""
        self._passed = 0.0

    def pass_time(self, seconds: float) -> None:
        """Move the clock; what a server does each second is done."""
        self._passed += seconds if self.close is not None else 0
        if seconds >= self.server.ping_interval or self._passed >= small_buffers().close_seconds:
            self.patience_is_over = True
        self.server.reactor.move_time(seconds)
        for client in self.clients:
            if not client.socket.gone:
                client.socket.check(self.server.reactor.now)

    def run(self) -> None:
        """All that is to do without waiting for time or for a client."""
        while self.server.reactor.turn():
            self.look()
        self.look()

    def look(self) -> None:
        """See whether a side has ended, and whether the record can be written."""
        for number, client in enumerate(self.clients):
            for _, message in list(client.socket.inbox._queue):
                if message["type"] == "websocket.disconnect" and self.close is None:
                    clean = message["clean"]
                    self.end(*((message["code"], message["reason"]) if clean else PEER_LOST), by=number)
        if self.close is not None and self.record is None and all(half.done() for half in self._halves):
            self.record = self.counted()

    def counted(self) -> list[tuple[int, int]]:
        return [(meter.frames, meter.nbytes) for meter in self.meters]

    def end(self, code: int, reason: str, by: int | None = None) -> None:
        """As `Sessions.end_session`."""
        if self.close is None:
            self.close = 1000 if code == 1005 else code, reason
            self.ended_by = by
            halves = [client.socket.unsplice() for client in self.clients]
            self._halves = [half for half in halves if half is not None]

    def tell(self, number: int) -> None:
        """As a leg's application, a turn or more after the session's end."""
        if self.close is not None and not self.told[number]:
            self.told[number] = True
            socket = self.clients[number].socket
            if self.ended_by != number:
                self.was_open[number] = socket.state == socket.STATE_OPEN
                socket.close(*self.close)


SIZES = st.one_of(st.integers(0, 140), st.sampled_from([0, 1, 125, 126, 1000, 3000]))


LETTERS = b"The quick brown fox jumps over the lazy dog. "

MESSAGES = st.one_of(
    st.tuples(st.sampled_from(["binary", "text", "ping"]), SIZES).map(lambda frame: [frame]),
    st.tuples(SIZES, SIZES).map(lambda sizes: [("begin", sizes[0]), ("ping", 4), ("end", sizes[1] // 2)]),
    st.tuples(SIZES, SIZES, SIZES).map(
        lambda sizes: [("begin", sizes[0] // 2), ("go on", sizes[1] // 4), ("end", sizes[2] // 4)]
    ),
)
LAST = st.sampled_from(["", "", "", "close", "not UTF-8", "reserved bit", "too big"])


def encode(frame: Frame, number: int) -> bytes:
    """A frame as a client sends it; what it carries depends on its number."""
    kind, size = frame
    payload = (LETTERS[number % 40 :] * (size // 5 + 1))[:size]
    if kind == "close":
        return masked(CLOSE, b"\x0f\xa1bye")
    if kind == "not UTF-8":
        return masked(TEXT, LETTERS * 6 + b"\xff" + LETTERS)
    if kind == "reserved bit":
        return b"\xf2\x80" + b"abcd"
    if kind == "too big":
        return masked(BINARY, bytes(5001))
    if kind == "ping":
        return masked(PING, payload[:125])
    opcode = {"binary": BINARY, "text": TEXT, "begin": BINARY}.get(kind, CONTINUATION)
    return masked(opcode, payload, fin=kind not in ("begin", "go on"))


def streams() -> st.SearchStrategy[list[Frame]]:
    """What one client sends: messages, whole or in fragments, and pings; perhaps a close or nonsense then."""
    return st.tuples(st.lists(MESSAGES, max_size=5), LAST).map(
        lambda drawn: (
            [frame for frames in drawn[0] for frame in frames] + ([(drawn[1], 0)] if drawn[1] else [])
        )
    )


SIDE = st.integers(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), SIDE, st.one_of(st.integers(1, 300), st.integers(1, 6000))),
        st.tuples(st.just("feed"), SIDE, st.one_of(st.integers(1, 300), st.integers(1, 6000))),
        st.tuples(st.just("room"), SIDE, st.integers(1, 3000)),
        st.tuples(st.just("no room"), SIDE, st.just(0)),
        st.tuples(st.just("end"), SIDE, st.just(0)),
        st.tuples(st.just("tell"), SIDE, st.just(0)),
        st.tuples(st.just("check"), SIDE, st.sampled_from([1, 25])),
        st.tuples(st.just("drop"), SIDE, st.integers(0, 1)),
        st.tuples(st.just("close"), SIDE, st.just(0)),
    ),
    max_size=14,
)
MANNERS = st.lists(st.sampled_from(["answers", "answers", "goes on", "silent"]), min_size=2, max_size=2)


def play(session: Session, steps: list[tuple[str, int, int]]) -> None:
    """Do all steps, then end the session if nothing has, and give everybody time."""
    clients = session.clients
    for what, side, size in steps:
        client = clients[side]
        if what == "feed":
            client.feed(size)
        elif what == "room":
            client.kernel.room += size
        elif what == "no room":
            client.kernel.room = 0
        elif what == "end":
            session.end(*END)
        elif what == "tell":
            session.tell(side)
        elif what == "check":
            session.pass_time(size)
        elif what == "drop":
            client.gone = True
            client.kernel.hung_up = True
            client.kernel.reset = bool(size)
        elif what == "close" and not client.stopped and not client.gone:
            end = next((end for end in client.ends if end >= client.fed), client.fed)
            client.feed(end - client.fed)
            client.kernel.arrive(masked(CLOSE, b"\x0f\xa0of its own"))
            client.stopped = True
        session.run()
    session.end(*END)
    for side in (0, 1):
        session.tell(side)
    for client in clients:
        client.kernel.room = 1 << 30
    session.run()
    for client in clients:
        client.obey()
        session.run()
    for client in clients:
        client.obey()
    session.run()
    # Clients that do not answer, and frames that nobody ends, are given up.
    if not all(client.socket.gone for client in clients):
        session.pass_time(60)
        session.run()


@settings(max_examples=400, deadline=None)
@given(both=st.tuples(streams(), streams()), manners=MANNERS, steps=STEPS)
def test_a_receiver_gets_an_exact_prefix_in_whole_frames_and_the_record_says_so(both, manners, steps):
    server = Server()
    try:
        session = Session(server, list(both), manners)
        play(session, steps)
        for number in (0, 1):
            check_received(session, number)
        assert session.record == session.counted()
        assert all(client.socket.gone for client in session.clients)
    finally:
        server.close()


def check_received(session: Session, number: int) -> None:
    """What client `number` received of what its peer sent."""
    client, peer, meter = session.clients[number], session.clients[1 - number], session.meters[1 - number]
    received = client.received()
    half = received.pop() if received and not received[-1].complete else None
    data = [frame for frame in received if frame.opcode < CLOSE]
    sent = [frame for frame in slice_frames(peer.stream[: peer.fed]) if frame.opcode < CLOSE]
    # Frame by frame what was sent, up to somewhere.
    assert [(f.first, f.payload) for f in data] == [(f.first, f.payload) for f in sent[: len(data)]]
    controls = [frame for frame in received if frame.opcode >= CLOSE]
    closes = [frame for frame in controls if frame.opcode == CLOSE]
    assert len(closes) <= 1
    if closes:
        assert received[-1].opcode == CLOSE, "something follows a close frame"
        assert half is None, "a frame is cut by a close"
    reset = client.kernel.reset
    if half is not None and half.opcode < CLOSE and not reset:
        source = sent[len(data)]
        last = [frame for frame in slice_frames(peer.stream) if frame.opcode < CLOSE][len(data)]
        assert unmasked(last).startswith(half.raw)
        assert len(half.payload) <= len(source.payload)
        # Half a frame only where the rest of it never came, or could not be read.
        refused = b"\xff" in last.payload
        assert not source.complete or refused or peer.kernel.reset or client.gone or session.patience_is_over
    away = reset or client.gone or session.patience_is_over
    assert not client.kernel.cut_short or away, "what was sent may be lost in a reset"
    if session.was_open[number] and not away:
        if half is None:
            assert [close.payload for close in closes] == [pack_close(*session.close)]
        if session.ended_by == 1 - number and session.close != PEER_LOST:
            assert len(data) == len(sent), "what came before a clean close is missing"
    # What is recorded is what was written; all that was written is received unless the receiver went away.
    if not away:
        whole = messages(data)
        assert (meter.frames, meter.nbytes) == (len(whole), sum(whole))


def pack_close(code: int, reason: str) -> bytes:
    """The body of a close frame."""
    return code.to_bytes(2, "big") + reason.encode()


def messages(frames: list[Any]) -> list[int]:
    """The payload bytes of each whole message."""
    sizes, size = [], 0
    for frame in frames:
        size += len(frame.payload)
        if frame.fin:
            sizes.append(size)
            size = 0
    return sizes
