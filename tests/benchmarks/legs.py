"""The two ends of a session: legs that check what they receive, streams that keep them full."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_connect,
    ws_create_server,
)

from .plan import MIB, Target
from .traffic import Trace

BINARY, CLOSE = WSMsgType.BINARY, WSMsgType.CLOSE
CONNECT_SECONDS = 15.0
LOST_SECONDS = 1.0
"""Where losses are counted, frames on the way for this long while nothing comes are lost."""
STALL_SECONDS = 6.0
"""A relay that delivers nothing for this long while frames are on the way has lost them."""
SESSION_PREFIX = uuid.uuid4().hex[:8]
_session_numbers = itertools.count()


class WorkloadError(Exception):
    """The relay did not do its work; the text is the reason for the table."""


def new_session() -> str:
    """A session id that no job of this process used before."""
    return f"bench-{SESSION_PREFIX}-{next(_session_numbers)}"


class Leg(WSListener):
    """One end: counts what arrives, and compares every `check_every`-th frame with what it must be.

    With `may_lose`, for traces of one size and with all frames checked, missing ones are counted in `lost`:
    less than half a trace in a row, so that the trace has to be longer than twice the window.
    """

    def __init__(self, trace: Trace | None = None, check_every: int = 1, may_lose: bool = False) -> None:
        self.trace = trace
        self.check_every = check_every
        self.may_lose = may_lose
        self.frames = 0
        self.bytes = 0
        self.lost = 0
        self.error = ""
        self.progress: Callable[[], None] = lambda: None
        self.is_server = False
        self._write_paused = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.raw = transport.underlying_transport
        self.is_server = not transport.is_client_side
        self.opened.set_result(None)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == BINARY:
            number = self.frames + self.lost
            self.frames += 1
            self.bytes += frame.payload_size
            if not number % self.check_every:
                self._check(number, frame)
            if frame.last_in_buffer:
                self.progress()
        elif frame.msg_type == CLOSE:
            self.error = (
                f"closed by the relay: {frame.get_close_code()} {frame.get_close_reason() or ''}".strip()
            )
            transport.disconnect()
        elif frame.msg_type not in (WSMsgType.PING, WSMsgType.PONG):  # a keepalive is no frame of the peer's
            self.error = f"a {frame.msg_type.name} frame, not the binary one that was sent"

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.error = self.error or "the connection was dropped"
        self.progress()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False

    def can_write(self) -> bool:
        """Whether the transport has room; without, the relay takes no more."""
        return not self._write_paused

    def _check(self, number: int, frame: WSFrame) -> None:
        if self.trace is not None:
            payloads = self.trace.payloads
            payload = frame.get_payload_as_bytes()
            if frame.fin and payload == payloads[number % len(payloads)]:
                return
            if self.may_lose and frame.fin:
                for gap in range(1, len(payloads) // 2):
                    if payload == payloads[(number + gap) % len(payloads)]:
                        self.lost += gap
                        return
            self.error = self.error or f"frame {number} is not the one that was sent"


class Stream:
    """One direction of a session, kept full: never more than the window on the way, so that it ends soon."""

    def __init__(
        self, sender: Leg, receiver: Leg, trace: Trace, window_bytes: int, window_frames: int
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.trace = trace
        self.window_bytes = window_bytes
        self.window_frames = window_frames
        self.batches = trace.plain if sender.is_server else trace.masked
        self.next = 0
        self.sent_frames = 0
        self.sent_bytes = 0
        self.running = False
        self.drained = asyncio.Event()
        receiver.progress = self.pump

    @property
    def error(self) -> str:
        """Why this direction can't go on; empty while it can."""
        return self.receiver.error or self.sender.error

    def pump(self) -> None:
        """Write what the window allows; once stopped, note when all has arrived."""
        receiver = self.receiver
        if self.running:
            while True:
                batch = self.batches[self.next]
                on_the_way = self.on_the_way()
                if on_the_way and (
                    on_the_way + batch.frames > self.window_frames
                    or self.sent_bytes + batch.payload_bytes - receiver.bytes - self._lost_bytes()
                    > self.window_bytes
                ):
                    return
                self.sender.raw.write(batch.wire)
                self.next = (self.next + 1) % len(self.batches)
                self.sent_frames += batch.frames
                self.sent_bytes += batch.payload_bytes
        elif self.on_the_way() <= 0 or self.error:
            self.drained.set()

    def on_the_way(self) -> int:
        """Frames that were sent, and neither arrived nor are known to be lost."""
        return self.sent_frames - self.receiver.frames - self.receiver.lost

    def _lost_bytes(self) -> int:
        return self.receiver.lost * len(self.trace.payloads[0])

    def write_off(self) -> None:
        """Where losses are counted: what is on the way will not come any more."""
        if self.receiver.may_lose:
            self.receiver.lost += self.on_the_way()
            self.pump()

    def start(self) -> None:
        """Begin to send."""
        self.running = True
        self.drained.clear()
        self.pump()

    def stop(self) -> None:
        """Send no more; `drained` is set when what is on the way has arrived."""
        self.running = False
        self.drained.clear()
        self.pump()

    def verify(self) -> None:
        """Raise `WorkloadError` unless exactly what was sent has arrived."""
        if self.error:
            raise WorkloadError(self.error)
        got, frames = self.receiver, self.sent_frames
        if got.frames + got.lost != frames:
            raise WorkloadError(f"{got.frames:,} of {frames:,} frames arrived")
        if got.bytes + self._lost_bytes() != self.trace.bytes_of(frames):
            raise WorkloadError(f"{got.bytes:,} of {self.trace.bytes_of(frames):,} bytes arrived")


async def run_streams(streams: list[Stream], seconds: float) -> list[int]:
    """Keep all streams full for `seconds`, then wait for the rest; frames received by each at the stop.

    Raises `WorkloadError` when a connection ends, or when frames are missing and nothing comes any more.
    """
    before = [stream.receiver.frames for stream in streams]
    for stream in streams:
        stream.start()
    await watch(streams, seconds)
    counts = [stream.receiver.frames - start for stream, start in zip(streams, before, strict=True)]
    await finish(streams)
    return counts


async def watch(streams: list[Stream], seconds: float) -> None:
    """Let streams run for `seconds`; raises `WorkloadError` when a connection ends."""
    stop_at = time.monotonic() + seconds
    arrived = [(-1, 0.0)] * len(streams)
    while (left := stop_at - time.monotonic()) > 0:
        await asyncio.sleep(min(left, 0.25))
        for number, stream in enumerate(streams):
            if stream.error:
                raise WorkloadError(stream.error)
            frames, since = arrived[number]
            if stream.receiver.frames != frames:
                arrived[number] = stream.receiver.frames, time.monotonic()
            elif time.monotonic() - since > LOST_SECONDS:
                stream.write_off()


async def finish(streams: list[Stream]) -> None:
    """Stop, wait for what is on the way, and verify; raises `WorkloadError` when it does not come."""
    for stream in streams:
        stream.stop()
    arrived, since = -1, time.monotonic()
    for stream in streams:
        while not stream.drained.is_set() and time.monotonic() - since < STALL_SECONDS:
            with suppress(TimeoutError):
                await asyncio.wait_for(stream.drained.wait(), 0.25)
            now = sum(other.receiver.frames for other in streams)
            if now != arrived:
                arrived, since = now, time.monotonic()
            elif time.monotonic() - since > LOST_SECONDS:
                stream.write_off()
    for stream in streams:
        stream.verify()


class Arena:
    """Opens sessions on a target and closes them all in the end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.legs: list[Leg] = []
        self._expected: dict[str, Leg] = {}
        self._backend: asyncio.Server | None = None

    async def __aenter__(self) -> "Arena":
        if self.target.backend_port is not None:
            self._backend = await ws_create_server(
                self._far_leg,
                "127.0.0.1",
                self.target.backend_port,
                max_frame_size=64 * MIB,
                use_aiofastnet=False,
                reuse_address=True,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        for leg in self.legs:
            if not leg.transport.is_disconnected:
                leg.raw.abort()
        if self._backend:
            self._backend.close()
        await asyncio.sleep(0.02)

    async def pair(
        self, session: str, make: Callable[[], Leg] = Leg, make_far: Callable[[], Leg] | None = None
    ) -> tuple[Leg, Leg]:
        """Both legs of a new session, the far one made by `make_far` where it is another kind."""
        make_far = make_far or make
        if self.target.backend_port is None:
            near = await self.leg(session, "client", make)
            return near, await self.leg(session, "server", make_far, self.target.far_port)
        far = self._expected[session] = make_far()
        near = await self.leg(session, "client", make)
        await asyncio.wait_for(far.opened, CONNECT_SECONDS)
        self.legs.append(far)
        return near, far

    async def leg(
        self, session: str, role: str, make: Callable[[], Leg] = Leg, port: int | None = None
    ) -> Leg:
        """One leg of a session, once its upgrade is through; raises `WorkloadError` when refused."""
        url = f"ws://127.0.0.1:{port or self.target.port}/relay/{session}"
        if self.target.token_key is not None:
            url += f"?token={token(self.target.token_key, session, role)}"
        try:
            _, leg = await ws_connect(
                lambda: make(),  # picows hands request and response to a factory that takes two
                url,
                websocket_handshake_timeout=CONNECT_SECONDS,
                max_frame_size=64 * MIB,
                use_aiofastnet=False,
            )
        except Exception as error:
            raise WorkloadError(f"can't connect: {error or type(error).__name__}") from error
        assert isinstance(leg, Leg)
        self.legs.append(leg)
        return leg

    def _far_leg(self, request: WSUpgradeRequest) -> Leg | None:
        return self._expected.pop(request.path.decode().rsplit("/", 1)[-1], None)


def token(key: str, session: str, role: str) -> str:
    """A plain HS256 token (RFC 7519) as the signaling server would issue it, for an hour."""
    claims = {"sub": f"{session}-{role}", "exp": int(time.time()) + 3600, "session_id": session, "role": role}
    parts = [_base64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signature = hmac.new(key.encode(), b".".join(parts), hashlib.sha256).digest()
    return b".".join((*parts, _base64(signature))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


async def each(
    count: int, at_once: int, act: Callable[[], Awaitable[Any]], seconds: float = float("inf")
) -> int:
    """`act` `count` times, `at_once` at a time, begun within `seconds`; how often it was done."""
    done, stop_at = 0, time.monotonic() + seconds
    numbers = iter(range(count))

    async def worker() -> None:
        nonlocal done
        for _ in numbers:
            if time.monotonic() > stop_at and done:
                return
            await act()
            done += 1

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return done
