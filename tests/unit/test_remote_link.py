"""The remote link, heard and seen from its exchange; what it promises over real ways is in `tests/nodes`."""

import asyncio
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest

from relay.links import MessageTooBig, Meter
from relay.links.remote import ACK_SECONDS, RETRY_SECONDS, RemoteLink
from relay.rules.closing import Close, CloseReason
from relay.rules.pulse import LONGEST_QUESTION_SECONDS
from relay.rules.roles import Role
from relay.rules.window import FRAME_BYTES
from tests.unit.virtual import virtually

WINDOW, BATCH, LARGEST = 2000, 1000, 1000

LINK_SECONDS = 15

HELLO = {"hello": {"account": "theirs"}}

DONE = Close.by_peer(4321, "done")


class Side:
    """A link, what it has sent and told, and the other side, which says what a test has it say."""

    channel = "here"

    def __init__(self, waits_for_record: bool = False) -> None:
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.told: list[Any] = []
        self.received: list[bytes | str] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.takes: int | None = None  # so many frames, and no more
        self.fails = self.is_registered = False
        self._serial = 0
        self.loop = asyncio.get_running_loop()
        self.inward, self.outward = Meter(), Meter()
        self.link = RemoteLink(
            self,  # type: ignore[arg-type]
            UUID(int=1),
            Role.CLIENT,
            "there",
            self,  # type: ignore[arg-type]
            send=self._receive,
            inward=self.inward,
            outward=self.outward,
            hello={"account": "ours"},
            window_bytes=WINDOW,
            batch_bytes=BATCH,
            max_message_bytes=LARGEST,
            link_seconds=LINK_SECONDS,
            clock=self.loop.time,
            waits_for_record=waits_for_record,
        )

    # As its exchange

    def register(self, session: str, role: Role, receiver: Any) -> None:
        assert (session, role) == (UUID(int=1).hex, Role.CLIENT)
        self.is_registered = True

    def unregister(self, session: str, role: Role) -> None:
        assert (session, role) == (UUID(int=1).hex, Role.CLIENT)
        self.is_registered = False

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        assert channel == "there"
        self.sent.append((self.loop.time(), message))
        if self.fails:
            raise OSError("away")

    # As its leg's socket

    async def _receive(self, message: dict[str, Any]) -> None:
        if len(self.received) == self.takes:
            self.reads.clear()
        await self.reads.wait()
        data = message.get("bytes")
        self.received.append(message["text"] if data is None else data)

    # As whom it tells

    def met(self, hello: dict[str, Any]) -> None:
        self.told.append(("met", hello["account"]))

    def peer_drains(self) -> None:
        self.told.append("peer drains")

    def peer_ended(self, close: Close) -> None:
        self.told.append(close)
        self.link.end(close)

    def silent(self) -> None:
        self.told.append("silent")

    def settled(self) -> None:
        self.told.append("settled")

    def finished(self) -> None:
        self.told.append("finished")
        self.link.close()

    def gone(self) -> None:
        self.told.append("gone")

    def unanswered(self) -> None:
        self.told.append("unanswered")

    # As the other side

    def hear(self, received: int = 0, delivered: tuple[int, int] = (0, 0), **more: Any) -> None:
        """The other side says this, and that it has seen all that was sent."""
        self._serial += 1
        seen = self.sent[-1][1]["serial"] if self.sent else 0
        message = {"serial": self._serial, "seen": seen, "received": received, "delivered": delivered}
        self.link.receive(message | more)

    async def meet(self) -> "Side":
        """Both know of each other, and nothing is left to be said."""
        await asyncio.sleep(0.01)
        self.hear(**HELLO)
        await asyncio.sleep(0.01)
        del self.sent[:], self.told[:]
        return self

    @property
    def last(self) -> dict[str, Any]:
        return self.sent[-1][1]

    @property
    def frames(self) -> list[list[bytes | str]]:
        """Those of each message that had some."""
        return [message["frames"] for _, message in self.sent if "frames" in message]

    async def forward(self, *frames: bytes | str) -> None:
        for frame in frames:
            await self.link.forward({"bytes" if isinstance(frame, bytes) else "text": frame})


def ends_with(close: Close, last: int = 0) -> dict[str, Any]:
    return {"end": {**close.as_dict(), "last": last}}


class StubbornExchange:
    """Its `send` swallows a cancellation, as `asyncio.wait_for` may before Python 3.12."""

    channel = "here"

    def __init__(self) -> None:
        self.sending = asyncio.Event()

    def register(self, *_: object) -> None:
        pass

    unregister = register

    async def send(self, *_: object) -> None:
        self.sending.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return


async def test_a_closed_link_leaves_no_task_behind():
    before = asyncio.all_tasks()
    exchange = StubbornExchange()
    link = RemoteLink(
        exchange,
        uuid4(),
        Role.CLIENT,
        "there",
        Mock(),
        send=Mock(),
        inward=Meter(),
        outward=Meter(),
        hello={},
        window_bytes=1000,
        batch_bytes=1000,
        max_message_bytes=1000,
        link_seconds=15,
        clock=asyncio.get_running_loop().time,
    )
    await exchange.sending.wait()
    tasks = asyncio.all_tasks() - before
    link.close()
    done, pending = await asyncio.wait(tasks, timeout=5)
    assert len(done) == 2
    assert not pending


# Meeting


@virtually
async def test_it_says_who_it_is_and_asks_until_it_is_answered_and_sends_no_frame_before():
    side = Side()
    await side.forward("early")
    await asyncio.sleep(3)
    assert len(side.sent) > 3
    assert all(
        (message["hello"], message["from"], message["asks"]) == ({"account": "ours"}, "here", True)
        for _, message in side.sent
    )
    assert side.frames == []
    del side.sent[:]
    side.hear(**HELLO)
    side.hear(hello={"account": "somebody else's"})
    await asyncio.sleep(0.01)
    assert side.told == [("met", "theirs")]
    assert side.frames == [["early"]]
    assert not any("hello" in message for _, message in side.sent)


@virtually
async def test_who_asks_and_says_who_it_is_hears_who_this_is_even_if_that_fails_at_first():
    side = await Side().meet()
    side.fails = True
    side.hear(asks=True, **HELLO)
    await asyncio.sleep(0.01)
    assert side.last["hello"] == {"account": "ours"}
    side.fails = False
    await asyncio.sleep(RETRY_SECONDS)
    assert len(side.sent) == 2
    assert side.last["hello"] == {"account": "ours"}
    side.hear(asks=True)
    await asyncio.sleep(0.01)
    assert "hello" not in side.last


@virtually
async def test_a_question_is_answered_at_once():
    side = await Side().meet()
    side.hear()
    await asyncio.sleep(1)
    assert side.sent == []
    side.hear(asks=True)
    await asyncio.sleep(ACK_SECONDS / 10)
    assert len(side.sent) == 1
    assert "asks" not in side.last


# Sending


@virtually
async def test_a_message_is_as_large_as_its_payload_in_utf8():
    side = await Side().meet()
    await side.forward("ü" * (LARGEST // 2))
    with pytest.raises(MessageTooBig, match=str(LARGEST + 2)):
        await side.forward("ü" * (LARGEST // 2 + 1))
    await asyncio.sleep(0.01)
    side.hear(1, (1, LARGEST))
    await side.forward(bytes(LARGEST))
    with pytest.raises(MessageTooBig):
        await side.forward(bytes(LARGEST + 1))
    await asyncio.sleep(0.01)
    side.hear(2, (2, 2 * LARGEST))
    assert (side.outward.frames, side.outward.nbytes) == (2, 2 * LARGEST)
    assert len(side.frames) == 2


@virtually
async def test_who_finds_no_room_waits_until_the_other_socket_has_taken_something():
    side = await Side().meet()
    size = WINDOW // 2 - FRAME_BYTES
    await side.forward(bytes(size), bytes(size))
    assert not side.link.sending
    waiting = asyncio.ensure_future(side.forward(b"more"))
    await asyncio.sleep(1)
    side.hear(2, (0, 0))  # received, and not taken
    await asyncio.sleep(1)
    assert side.link.sending
    assert not waiting.done()
    side.hear(2, (1, size))
    await waiting
    assert not side.link.sending
    assert side.outward.active_at == pytest.approx(side.loop.time(), abs=0.1)


@virtually
async def test_who_waits_for_room_hears_of_the_end_and_nothing_is_taken_after_it():
    side = await Side().meet()
    await side.forward(bytes(LARGEST))
    waiting = asyncio.ensure_future(side.forward(bytes(LARGEST)))
    await asyncio.sleep(1)
    side.link.end(DONE)
    with pytest.raises(OSError, match="has ended"):
        await waiting
    with pytest.raises(OSError, match="has ended"):
        await side.forward(b"")
    await asyncio.sleep(0.1)
    assert [len(frames) for frames in side.frames] == [1]


@virtually
async def test_all_that_was_forwarded_goes_out_with_the_end_which_names_the_last_of_it():
    side = await Side().meet()
    await side.forward(bytes(BATCH // 2))
    await asyncio.sleep(0.01)
    await side.forward(b"waits for more to share a batch with")
    await asyncio.sleep(0.1)
    assert len(side.frames) == 1
    side.link.end(DONE)
    await asyncio.sleep(0.01)
    assert side.frames[1] == [b"waits for more to share a batch with"]
    assert side.last["end"] == {**DONE.as_dict(), "last": 2}
    assert side.last["from"] == "here", "else nobody could say that the session is gone"


@virtually
async def test_a_message_that_can_not_be_sent_is_tried_twice_a_second_and_no_frame_is_lost():
    side = await Side().meet()
    side.fails = True
    await side.forward("kept")
    await asyncio.sleep(10)
    assert len(side.sent) == pytest.approx(10 / RETRY_SECONDS, abs=1)
    side.fails = False
    await asyncio.sleep(RETRY_SECONDS)
    assert side.frames[-1] == ["kept"]
    assert side.last["number"] == 1


# Receiving


@virtually
async def test_what_comes_is_delivered_once_in_order_and_counted_in_bytes_of_utf8():
    side = await Side().meet()
    side.hear(number=2, frames=["too early"])
    await asyncio.sleep(ACK_SECONDS / 10)
    assert side.last["received"] == 0, "the sender learns of the gap at once"
    side.hear(number=1, frames=["ü", b"12"])
    side.hear(number=1, frames=["ü", b"12"])
    side.hear(number=2, frames=["now"])
    await asyncio.sleep(0.01)
    assert side.received == ["ü", b"12", "now"]
    assert (side.inward.frames, side.inward.nbytes) == (3, 7)
    assert side.inward.active_at == pytest.approx(side.loop.time(), abs=0.02)
    assert (side.last["received"], side.last["delivered"]) == (2, [3, 7])
    assert side.last["seen"] == side._serial


@virtually
async def test_what_was_received_is_told_soon_and_once():
    side = await Side().meet()
    for number in (1, 2, 3):
        side.hear(number=number, frames=["x"])
    await asyncio.sleep(0)
    assert side.sent == []
    await asyncio.sleep(1.2 * ACK_SECONDS)
    assert len(side.sent) == 1
    await asyncio.sleep(1)
    assert len(side.sent) == 1


@virtually
async def test_half_a_window_that_was_taken_is_told_before_its_batch_is_through():
    """Else a sender whose window is smaller than its batch would wait for a receiver that waits for it."""
    side = await Side().meet()
    side.takes = 2
    side.reads.clear()
    side.hear(number=1, frames=[bytes(WINDOW // 4), bytes(WINDOW // 4), b"waits"])
    await asyncio.sleep(10 * ACK_SECONDS)
    assert side.last["delivered"] == [0, 0]
    side.reads.set()
    await asyncio.sleep(10 * ACK_SECONDS)
    assert side.last["delivered"] == [2, WINDOW // 2]
    assert side.link.delivering
    assert not side.link.quiet


@virtually
async def test_it_is_quiet_when_nothing_is_under_way_in_either_direction():
    side = await Side().meet()
    assert side.link.quiet
    await side.forward("x")
    assert not side.link.quiet
    await asyncio.sleep(0.01)
    side.hear(1, (0, 0))
    assert side.link.quiet, "the other node has it"
    side.reads.clear()
    side.hear(1, (0, 0), number=1, frames=["y"])
    assert not side.link.quiet, "it waits"
    await asyncio.sleep(0.01)
    assert not side.link.quiet, "the socket doesn't take it"
    side.reads.set()
    await asyncio.sleep(0.01)
    assert side.link.quiet


@virtually
async def test_an_old_message_takes_nothing_back():
    side = await Side().meet()
    await side.forward("x", "y")
    await asyncio.sleep(0.01)
    side.hear(1, (2, 2))
    side.hear(1, (1, 1))
    assert (side.outward.frames, side.outward.nbytes) == (2, 2)


@virtually
async def test_what_is_received_after_this_sides_end_is_not_delivered_and_yet_acknowledged():
    side = await Side().meet()
    side.link.end(DONE)
    side.hear(number=1, frames=["late"])
    await asyncio.sleep(1)
    assert side.received == []
    assert side.inward.frames == 0
    assert (side.last["received"], side.last["delivered"]) == (1, [0, 0])


# The end


@virtually
async def test_the_other_sides_end_counts_when_all_that_it_sent_before_is_delivered():
    side = await Side().meet()
    side.hear(number=1, frames=["one"], **ends_with(DONE, last=2))
    await asyncio.sleep(0.01)
    assert "knows_end" not in side.last
    assert side.received == ["one"]
    assert side.told == [], "the second one is missing"
    side.reads.clear()
    # Whatever else it says later.
    side.hear(number=2, frames=["two"], **ends_with(Close.because(CloseReason.STALLED), last=9))
    await asyncio.sleep(0.01)
    assert side.told == []
    side.reads.set()
    await asyncio.sleep(0.01)
    assert side.told == [DONE, "settled"]
    assert side.received == ["one", "two"]
    assert (side.last["knows_end"], side.last["delivered"]) == (True, [2, 6])


@virtually
async def test_it_is_finished_when_each_side_has_what_the_other_sent_and_both_know_of_both_ends():
    side = await Side().meet()
    await side.forward("x")
    side.link.end(DONE)
    assert side.told == []
    side.hear(1, (1, 1), **ends_with(DONE, last=1))
    side.hear(1, (1, 1), **ends_with(DONE, last=1))
    await asyncio.sleep(0.1)
    assert side.told == ["settled"]
    side.hear(1, (1, 1), knows_end=True, **ends_with(DONE, last=1))
    await asyncio.sleep(0.1)
    assert side.told == ["settled"], "its last batch is missing"
    side.hear(1, (1, 1), number=1, frames=["last"], knows_end=True, **ends_with(DONE, last=1))
    await asyncio.sleep(0.1)
    assert side.told == ["settled", "finished"]
    assert side.last["knows_end"], "so that the other side can finish, too"
    assert not side.is_registered


@virtually
async def test_who_writes_the_record_lets_the_other_side_go_when_that_is_safe():
    side = await Side(waits_for_record=True).meet()
    side.link.end(DONE)
    side.hear(knows_end=True, asks=True, **ends_with(DONE))
    await asyncio.sleep(LINK_SECONDS / 3)
    assert side.told == ["settled"]
    assert not any("knows_end" in message for _, message in side.sent)
    side.link.recorded()
    await asyncio.sleep(0.1)
    assert side.told == ["settled", "finished"]
    assert side.last["knows_end"]


@virtually
async def test_a_session_that_is_gone_at_the_other_side_ends_here_unless_it_had():
    side = await Side().meet()
    side.link.receive({"gone": DONE.as_dict()})
    assert side.told == [DONE, "gone"]
    del side.told[:]
    side.link.receive({"gone": Close.because(CloseReason.PEER_LOST).as_dict()})
    assert side.told == ["gone"]


@virtually
async def test_a_side_that_drains_says_so_again_and_again_until_the_other_one_ends():
    side = await Side().meet()
    side.link.drain()
    await asyncio.sleep(3)
    assert len(side.sent) > 2
    assert all(message["drains"] for _, message in side.sent)
    other = await Side().meet()
    for _ in range(2):
        other.hear(drains=True)
    assert other.told == ["peer drains", "peer drains"]


# The clock


@virtually
async def test_a_side_that_hears_nothing_is_silent_when_the_time_is_over_and_asks_before():
    side = await Side().meet()
    await asyncio.sleep(LINK_SECONDS - 0.1)
    assert side.told == []
    assert [message["asks"] for _, message in side.sent] == [True] * 4
    await asyncio.sleep(1.1)
    assert side.told[0] == "silent"
    assert "unanswered" not in side.told


@virtually
async def test_after_its_end_a_side_that_is_not_answered_says_so_after_half_that_time():
    side = await Side().meet()
    side.link.end(DONE)
    await asyncio.sleep(LINK_SECONDS / 2 - 0.1)
    assert side.told == []
    await asyncio.sleep(LONGEST_QUESTION_SECONDS)
    assert set(side.told) == {"unanswered"}


@virtually
async def test_what_can_not_be_sent_says_nothing_of_whether_the_other_side_lives():
    side = await Side().meet()
    side.link.end(DONE)
    await asyncio.sleep(LINK_SECONDS / 5)
    side.fails = True
    await asyncio.sleep(10 * LINK_SECONDS)
    assert side.told == []
    side.fails = False
    await asyncio.sleep(LINK_SECONDS / 2 - 1)
    assert side.told == [], "it has as long to answer as at first"
    await asyncio.sleep(1 + LONGEST_QUESTION_SECONDS)
    assert set(side.told) == {"unanswered"}


@pytest.mark.parametrize("what", ["a frame", "room", "the end", "a drain"])
@virtually
async def test_what_waits_for_an_answer_is_asked_for_soon(what):
    side = await Side().meet()
    waiting = None
    if what == "a frame":
        await side.forward("x")
    elif what == "room":
        await side.forward(bytes(LARGEST))
        waiting = asyncio.ensure_future(side.forward(bytes(LARGEST)))
        await asyncio.sleep(0.01)
        side.hear(1, (0, 0))
    elif what == "the end":
        side.link.end(DONE)
    else:
        side.link.drain()
    await asyncio.sleep(0.1)
    del side.sent[:]
    await asyncio.sleep(1)
    assert 1 <= len(side.sent) <= 3
    assert side.last["asks"]
    if waiting is not None:
        waiting.cancel()


@virtually
async def test_a_process_that_stood_still_hears_what_came_meanwhile_before_it_takes_anyone_for_dead():
    side = await Side().meet()
    await asyncio.sleep(1)
    side.loop._waits.now += 10 * LINK_SECONDS
    await asyncio.sleep(LINK_SECONDS / 2)
    assert side.told == []
    await asyncio.sleep(LINK_SECONDS)
    assert side.told[0] == "silent"


@virtually
async def test_a_closed_link_says_and_tells_nothing_more():
    side = await Side().meet()
    side.hear(number=1, frames=["x"])
    side.link.close()
    side.link.end(DONE)
    await asyncio.sleep(3 * LINK_SECONDS)
    assert side.sent == []
    assert side.told == []
    assert side.received == []
