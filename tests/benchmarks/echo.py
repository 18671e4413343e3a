"""Back and forth: a leg that echoes, and how long its echoes take."""

import asyncio
import os
import time

from picows import WSFrame, WSMsgType, WSTransport

from .legs import STALL_SECONDS, Leg, WorkloadError

ROUND_TRIP_BYTES = 128


class Echo(Leg):
    """Sends each frame back as it comes, at once."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            transport.send(WSMsgType.BINARY, frame.get_payload_as_bytes())
        else:
            super().on_ws_frame(transport, frame)


async def round_trips(near: Leg, seconds: float) -> list[int]:
    """Nanoseconds from each write of `near` to its echo's arrival, one frame at a time, for `seconds`.

    Raises `WorkloadError` when a connection ends or no echo comes any more.
    """
    payload, times = os.urandom(ROUND_TRIP_BYTES), list[int]()
    done = asyncio.Event()
    stop_at = time.perf_counter() + seconds
    sent_at = 0

    def ping() -> None:
        nonlocal sent_at
        sent_at = time.perf_counter_ns()
        near.transport.send(WSMsgType.BINARY, payload)

    def pong() -> None:
        now = time.perf_counter_ns()
        times.append(now - sent_at)
        if near.error or now / 1e9 > stop_at:
            done.set()
        else:
            ping()

    near.progress = pong
    ping()
    try:
        await asyncio.wait_for(done.wait(), seconds + STALL_SECONDS)
    except TimeoutError:
        raise WorkloadError(f"no echo after {len(times)} round trips") from None
    if near.error:
        raise WorkloadError(near.error)
    return times
