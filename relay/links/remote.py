"""The link between two legs on different nodes: batches through the channel layer, each exactly once.

`relay.rules.window` numbers and keeps what is under way. Here are its messages, its tasks (one that sends,
one that delivers) and its clock: when the other side is asked whether it's there, and when it counts as lost.

A link outlives its legs. When a side ends, its messages carry the close and the final count of what it
delivered, until it has the other side's, too, and the other side has its own. The side that writes the
session's record doesn't say that it has the other one's before the record is safe.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID

from relay.links import MessageTooBig, Meter
from relay.links.exchange import MESSAGE_TYPE, Exchange, Message
from relay.links.local import Send, text_bytes
from relay.rules.closing import Close
from relay.rules.pulse import Pulse
from relay.rules.roles import Role
from relay.rules.window import Batch, Frame, Incoming, Outgoing, Verdict

logger = logging.getLogger(__name__)

ACK_SECONDS = 0.005
"""How long news of what was received may wait for more to tell, or for frames to travel with."""

RETRY_SECONDS = 0.5
"""Pause after a message that could not be sent: the store is away, and asked twice a second."""


class Ends(Protocol):
    """Who is told of a link's fate. None of these may wait."""

    def met(self, hello: dict[str, Any]) -> None:
        """The other side has answered for the first time; `hello` is what it says of itself."""

    def peer_drains(self) -> None:
        """The other node drains, and has sent all it had: this side has to end once it has, too.

        Told again until this side has ended.
        """

    def peer_ended(self, close: Close) -> None:
        """The other side has ended, and all it sent before is delivered: this side has to end."""

    def silent(self) -> None:
        """Nothing came from the other side for the longest time allowed: this side has to end."""

    def settled(self) -> None:
        """Both sides have ended, and `RemoteLink.outward` has the other side's final count. Called once."""

    def finished(self) -> None:
        """The other side knows all, too, and the record is safe: the link may be closed."""

    def gone(self) -> None:
        """The other node is there and knows nothing of this session any more: its part is done."""

    def unanswered(self) -> None:
        """After this side's end: messages go out, but no answer comes. Called again until it's closed."""


class RemoteLink:
    """Both directions between one leg of this process and its peer's node.

    `inward` counts what is delivered to this leg, `outward` what the other side says of its own. `hello` is
    what this side says of itself until it's answered. With `waits_for_record` the other side isn't let go
    before `recorded` is called. Times are seconds of `clock`, which is the loop's.
    """

    def __init__(
        self,
        exchange: Exchange,
        session: UUID,
        role: Role,
        peer_channel: str,
        ends: Ends,
        *,
        send: Send,
        inward: Meter,
        outward: Meter,
        hello: dict[str, Any],
        window_bytes: int,
        batch_bytes: int,
        max_message_bytes: int,
        link_seconds: float,
        clock: Callable[[], float],
        waits_for_record: bool = False,
    ) -> None:
        self.inward = inward
        self.outward = outward
        self.sending = False
        """Whether a frame waits for room at the other side."""
        self.delivering = False
        """Whether a frame waits for this leg's socket."""
        self._exchange = exchange
        self._session = session.hex
        self._role = role
        self._peer_channel = peer_channel
        self._ends = ends
        self._send = send
        self._hello = hello
        self._max_message_bytes = max_message_bytes
        self._report_bytes = window_bytes // 2
        self._clock = clock
        self._loop = asyncio.get_running_loop()

        self._out = Outgoing(window_bytes, batch_bytes)
        self._in = Incoming()
        self._inbox: deque[list[Frame]] = deque()
        self._room: asyncio.Future[None] | None = None
        self._met = False
        self._drains = False  # this side has sent all it will, and asks the other one to end
        self._close: Close | None = None  # this side's end
        self._close_of_peer: Close | None = None
        self._last_of_peer = 0  # the number of its last batch, known with its end
        self._peer_knows = False  # this side's end, and has all that was sent before
        self._waits_for_record = waits_for_record
        self._has_let_go = False  # the other side was told that this one needs nothing more of it
        self._is_settled = False

        # What the next message has to carry, frames aside.
        self._owes_answer = False
        self._asks = False
        self._introduces = False
        self._reported = (0, 0, 0)  # batches received, frames and bytes delivered, as told last
        self._report_timer: asyncio.TimerHandle | None = None

        self._pulse = Pulse(link_seconds, clock())
        self._tick_timer: asyncio.TimerHandle | None = None

        self._news = asyncio.Event()  # for the task that sends
        self._arrived = asyncio.Event()  # for the task that delivers
        self._closed = False
        exchange.register(self._session, role, self)
        self._pumping = asyncio.create_task(self._pump())
        self._delivery = asyncio.create_task(self._deliver())
        self._ask()
        self._tick()

    # The leg's side

    async def forward(self, message: Message) -> None:
        """Take on one `websocket.receive` message; returns when there was room for it in the window.

        Raises `MessageTooBig` before anything is sent, and `OSError` when this side has ended.
        """
        frame: Frame | None = message.get("bytes")
        if frame is None:
            frame = message["text"]
            size = text_bytes(frame)  # type: ignore[arg-type]
        else:
            size = len(frame)
        if size > self._max_message_bytes:
            raise MessageTooBig(size)
        out = self._out
        while not out.has_room(size) and self._close is None:
            self.sending = True
            self._room = self._loop.create_future()
            await self._room
            self.sending = False
        if self._close is not None:
            raise OSError("the link has ended")
        out.add(frame, size)
        self._news.set()

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way on this side in either direction."""
        return not (self._out.unreceived or self._inbox or self.delivering)

    def drain(self) -> None:
        """Have the other side end, after all that it has sent; nothing may be forwarded any more."""
        self._drains = True
        self._answer()

    def end(self, close: Close) -> None:
        """This side ends: what was forwarded still goes out, then `close`. Nothing more is delivered."""
        self._close = close
        if self._delivery is not asyncio.current_task():
            self._delivery.cancel()
        self._inbox.clear()
        self._give_room()
        self._answer()
        self._check_settled()

    def recorded(self) -> None:
        """The record that this side writes is safe: the other side may forget what it knows."""
        self._waits_for_record = False
        self._answer()

    def close(self) -> None:
        """Forget all; what still comes from the other side is a stranger's."""
        self._closed = True
        self._exchange.unregister(self._session, self._role)
        for timer in (self._tick_timer, self._report_timer):
            if timer is not None:
                timer.cancel()
        for task in (self._pumping, self._delivery):
            if task is not asyncio.current_task():
                task.cancel()

    # From the other side

    def receive(self, message: Message) -> None:
        """Take one message of the other side; never waits."""
        self._pulse.heard(self._clock())
        if "gone" in message:
            if self._close is None:
                self._ends.peer_ended(Close.from_dict(message["gone"]))
            self._ends.gone()
            return
        self._meet(message)
        self._in.see(message["serial"])
        self._acknowledged(message)
        if message.get("asks"):
            self._answer()
        if "frames" in message:
            self._received(message["number"], message["frames"])
        if message.get("knows_end"):
            self._peer_knows = True
            self._news.set()
        if message.get("drains"):
            self._ends.peer_drains()
        if "end" in message:
            self._end_of_peer(message["end"])

    def _meet(self, message: Message) -> None:
        hello = message.get("hello")
        if hello is None:
            return
        if message.get("asks"):
            self._introduces = True
        if not self._met:
            self._met = True
            self._ends.met(hello)
            self._news.set()

    def _acknowledged(self, message: Message) -> None:
        frames, nbytes = message["delivered"]
        self._out.acknowledge(message["received"], frames, nbytes, message["seen"])
        outward = self.outward
        if frames > outward.frames:
            outward.frames, outward.nbytes, outward.active_at = frames, nbytes, self._clock()
            self._give_room()
        self._news.set()

    def _received(self, number: int, frames: list[Frame]) -> None:
        verdict = self._in.receive(number)
        if verdict is Verdict.EARLY:
            self._answer()  # the sender learns of the gap at once
            return
        if verdict is Verdict.NEXT and self._close is None:
            self._inbox.append(frames)
            self._arrived.set()
        self._report_soon()

    def _end_of_peer(self, end: dict[str, Any]) -> None:
        if self._close_of_peer is None:
            self._close_of_peer = Close.from_dict(end)
            self._last_of_peer = end["last"]
            self._answer()
        self._let_peer_end()
        self._check_settled()

    def _let_peer_end(self) -> None:
        """The other side's end counts when all that it sent before is delivered."""
        if self._close_of_peer is None or self._close is not None:
            return
        if self._has_all and not self._inbox and not self.delivering:
            self._ends.peer_ended(self._close_of_peer)

    @property
    def _has_all(self) -> bool:
        return self._in.received >= self._last_of_peer

    def _check_settled(self) -> None:
        if self._close is not None and self._close_of_peer is not None and not self._is_settled:
            self._is_settled = True
            self._ends.settled()

    # Delivering

    async def _deliver(self) -> None:
        inward, send, clock = self.inward, self._send, self._clock
        try:
            while True:
                while not self._inbox:
                    self._arrived.clear()
                    self._let_peer_end()
                    await self._arrived.wait()
                frames = self._inbox.popleft()
                self.delivering = True
                for frame in frames:
                    if isinstance(frame, bytes):
                        size = len(frame)
                        await send({"type": "websocket.send", "bytes": frame})
                    else:
                        size = text_bytes(frame)
                        await send({"type": "websocket.send", "text": frame})
                    inward.frames += 1
                    inward.nbytes += size
                    if inward.nbytes - self._reported[2] >= self._report_bytes:
                        self._answer()
                inward.active_at = clock()
                self.delivering = False
                self._report_soon()
        except OSError:
            pass  # this leg's socket is gone; its reader ends the session and says why
        finally:
            self.delivering = False

    def _report_soon(self) -> None:
        if self._report_timer is None and not self._closed:
            self._report_timer = self._loop.call_later(ACK_SECONDS, self._report)

    def _report(self) -> None:
        self._report_timer = None
        if self._reported != self._report_now:
            self._answer()

    @property
    def _report_now(self) -> tuple[int, int, int]:
        return self._in.received, self.inward.frames, self.inward.nbytes

    # Sending

    def _answer(self) -> None:
        """Have a message sent soon, whether there are frames or not."""
        self._owes_answer = True
        self._news.set()

    def _ask(self) -> None:
        """Have the other side answer."""
        self._asks = True
        self._news.set()

    async def _pump(self) -> None:
        """Send what there is to send, one message at a time."""
        # Asked each time: a client library may swallow a cancellation that comes as it's done (`wait_for` of
        # Python 3.11 does), and this would wait for ever, for a link that nobody knows any more.
        while not self._closed:
            await self._news.wait()
            self._news.clear()
            while not self._closed:
                batch = self._out.next_batch(flush=self._close is not None) if self._met else None
                if batch is None and not (self._owes_answer or self._asks):
                    break
                if not await self._send_one(batch):
                    await asyncio.sleep(RETRY_SECONDS)
            if self._is_settled and self._peer_knows and self._lets_go:
                if self._has_let_go:
                    self._ends.finished()
                    return
                self._answer()

    async def _send_one(self, batch: Batch | None) -> bool:
        message = self._message(batch)
        self._owes_answer = self._asks = self._introduces = False
        try:
            await self._exchange.send(self._peer_channel, message)
        except Exception as error:  # noqa: BLE001 - a layer raises what its client library raises
            logger.debug("a link's message could not be sent: %s: %s", type(error).__name__, error)
            if batch is not None:
                self._out.failed(batch)
            self._pulse.failed()
            self._introduces = "hello" in message
            self._answer()
            return False
        self._pulse.sent(self._clock())
        self._has_let_go = "knows_end" in message
        return True

    def _message(self, batch: Batch | None) -> Message:
        self._reported = received, frames, nbytes = self._report_now
        message: Message = {
            "type": MESSAGE_TYPE,
            "session": self._session,
            "to": str(self._role.other),
            "serial": batch.serial if batch is not None else self._out.stamp(),
            "seen": self._in.seen,
            "received": received,
            "delivered": [frames, nbytes],
        }
        if not self._met or self._introduces:
            message["hello"] = self._hello
            message["from"] = self._exchange.channel
        if self._asks or not self._met:
            message["asks"] = True
        if batch is not None:
            message["number"] = batch.number
            message["frames"] = batch.frames
        if self._drains:
            message["drains"] = True
        if self._close is not None:
            message["from"] = self._exchange.channel
            message["end"] = {**self._close.as_dict(), "last": self._out.last}
        if self._close_of_peer is not None and self._lets_go:
            message["knows_end"] = True
        return message

    @property
    def _lets_go(self) -> bool:
        """Whether this side needs nothing more of the other one, whose end it knows."""
        return self._has_all and not self._waits_for_record

    def _give_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # The clock

    def _tick(self) -> None:
        """Ask the other side whether it's there when that is due; look again when it next may be."""
        now, pulse = self._clock(), self._pulse
        pulse.awake(now)
        if self._close is None and pulse.is_silent(now):
            self._ends.silent()
        elif self._close is not None and pulse.is_unanswered(now):
            self._ends.unanswered()
        if self._closed:
            return
        ends = self._drains or self._close is not None
        asks, delay = pulse.next_look(now, self._out.unreceived or self.sending or not self._met or ends)
        if asks:
            self._ask()
        self._tick_timer = self._loop.call_later(delay, self._tick)
