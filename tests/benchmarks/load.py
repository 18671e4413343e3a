"""The load generator, a process of its own: jobs as JSON lines on stdin, figures as JSON lines on stdout.

It reads the server's CPU clock itself, right before the first frame and right after the last has arrived.
Each job is bounded in time and bytes, uses the loopback only, and ends when stdin does.
"""

import asyncio
import itertools
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop

from .echo import ROUND_TRIP_BYTES, Echo, round_trips
from .legs import (
    CONNECT_SECONDS,
    Arena,
    Leg,
    Stream,
    WorkloadError,
    each,
    finish,
    new_session,
    run_streams,
    watch,
)
from .measure import ProcessTree
from .meter import Figures, Meter, idle
from .plan import KIB, MIB, Job, Target
from .stats import percentile
from .traffic import make_trace, trace_for
from .usage import checkpoint, joins, rtt_checkpoint

PAIRS = 200
MIN_WINDOWS = 3
"""Fairness is told only when the pairs had this many windows each on average; below, the start decides."""
WARM_UP_SHARE = 0.2


async def stream(target: Target, workload: str, seconds: float, both_ways: bool = False) -> Figures:
    """One pair kept full for `seconds`, in one direction or both."""
    trace, window_bytes = trace_for(workload, target.window_frames)
    check_every = 16 if len(trace.payloads) > 100 else 4
    tree = ProcessTree(target.pid)
    async with Arena(target) as arena:
        near, far = await arena.pair(new_session(), partial(Leg, trace, check_every))
        ways = [(near, far), (far, near)] if both_ways else [(near, far)]
        streams = [Stream(*way, trace, window_bytes, target.window_frames) for way in ways]
        await run_streams(streams, seconds * WARM_UP_SHARE)
        rss = tree.rss()
        before = sum(s.sent_frames for s in streams), sum(s.sent_bytes for s in streams)
        meter = Meter(target)
        await run_streams(streams, seconds)
        after = sum(s.sent_frames for s in streams), sum(s.sent_bytes for s in streams)
        figures = meter.figures(after[0] - before[0], after[1] - before[1])
        return figures | {"rss_growth": tree.rss() - rss}


async def across(target: Target, workload: str, seconds: float) -> Figures:
    """One pair kept full in one direction, each leg on its own node; `seconds` of it, from the midst.

    Only frames that arrived count. What is lost is known in the end only, so `lost` is of all that was sent.
    """
    trace, window_bytes = trace_for(workload, target.window_frames)
    check_every = 1 if target.may_lose or len(trace.payloads) < 100 else 16
    async with Arena(target) as arena:
        near, far = await arena.pair(new_session(), partial(Leg, trace, check_every, target.may_lose))
        way = Stream(near, far, trace, window_bytes, target.window_frames)
        way.start()
        met_by = time.monotonic() + CONNECT_SECONDS
        while not far.frames and time.monotonic() < met_by:
            await watch([way], 0.05)  # the nodes have found each other
        await watch([way], seconds * WARM_UP_SHARE)
        frames, size = far.frames, far.bytes
        meter = Meter(target)
        await watch([way], seconds)
        figures = meter.figures(far.frames - frames, far.bytes - size)
        await finish([way])
        return figures | {"lost": far.lost / way.sent_frames}


async def on_one_node(target: Target, seconds: float) -> Figures:
    """`small` with both legs on the first node, and what is asked of the broker meanwhile and when idle."""
    target = replace(target, far_port=None, far_pid=None)
    await stream(target, "small", 0.05)  # the node knows its broker from its first leg on
    idle = Meter(target)
    if target.broker_port is not None:
        await asyncio.sleep(seconds)
    asked_idle = idle.commands_per_s()
    figures = await stream(target, "small", seconds)
    if target.broker_port is not None:
        more = figures["commands"] - asked_idle * figures["seconds"]
        figures |= {
            "commands_per_s": figures["commands"] / figures["seconds"],
            "idle_commands_per_s": asked_idle,
            "frame_commands_per_10k": max(0.0, more) / figures["frames"] * 10_000,
        }
    return figures


async def paced(target: Target, seconds: float) -> Figures:
    """One frame per write, about a millisecond apart: what a frame costs that comes alone."""
    trace = make_trace([128] * 256, 128)
    async with Arena(target) as arena:
        near, far = await arena.pair(new_session(), partial(Leg, trace, 16))
        way = Stream(near, far, trace, MIB, min(target.window_frames, 1000))
        await run_streams([way], 0.05)  # the pair is up
        meter = Meter(target)
        start = way.sent_frames
        stop_at = time.monotonic() + seconds
        while time.monotonic() < stop_at:
            if way.sent_frames - far.frames < way.window_frames:
                batch = way.batches[way.next]
                near.raw.write(batch.wire)
                way.next = (way.next + 1) % len(way.batches)
                way.sent_frames += 1
            await asyncio.sleep(0.001)
        await finish([way])
        frames = way.sent_frames - start
        return meter.figures(frames, frames * 128)


async def rtt(target: Target, seconds: float) -> Figures:
    """Back and forth, one frame at a time: microseconds from a write to its echo's arrival."""
    async with Arena(target) as arena:
        near, _ = await arena.pair(new_session(), make_far=Echo)
        await round_trips(near, seconds * WARM_UP_SHARE)
        meter = Meter(target)
        times = await round_trips(near, seconds)
        figures = meter.figures(2 * len(times), 2 * ROUND_TRIP_BYTES * len(times))
        return figures | {
            "p50_us": percentile(times, 0.5) / 1e3,
            "p99_us": percentile(times, 0.99) / 1e3,
        }


async def pairs(target: Target, seconds: float) -> Figures:
    """One pair, then 200 at once with the very same batches and window each, on the same server.

    `fairness` (frames of the slowest pair to those of the fastest) is left out where too few came to tell.
    """
    per_pair = min(target.window_frames, max(4, target.window_frames // 8))
    trace, window_bytes = trace_for("pairs", per_pair)
    figures: list[Figures] = []
    counts: list[int] = []
    for count in (1, PAIRS):
        async with Arena(target) as arena:
            ends = [await arena.pair(new_session(), partial(Leg, trace, 16)) for _ in range(count)]
            streams = [Stream(*end, trace, window_bytes, per_pair) for end in ends]
            await run_streams(streams, seconds * WARM_UP_SHARE)
            before = sum(s.sent_frames for s in streams)
            meter = Meter(target)
            counts = await run_streams(streams, seconds if count > 1 else seconds / 2)
            frames = sum(s.sent_frames for s in streams) - before
            figures.append(meter.figures(frames, frames * 128))
    one, many = figures
    if sum(counts) / PAIRS >= MIN_WINDOWS * window_bytes / 128:
        many["fairness"] = min(counts) / max(counts)
    return many | {
        "one_pair_cpu_us": one["cpu_us_per_frame"],
        "cpu_to_one_pair": many["cpu_us_per_frame"] / one["cpu_us_per_frame"],
    }


async def waiting(target: Target, legs: int, cycles: int, seconds: float) -> Figures:
    """Memory of legs whose peer has not come, then whether connects and disconnects leave any behind.

    The connects of either part may take `seconds`; a server that needs longer is measured on fewer.
    """
    tree = ProcessTree(target.pid)
    async with Arena(target) as arena:
        await each(50, 10, lambda: _come_and_go(arena))  # imports and caches of the first few
        await idle(tree)
        before, cpu = tree.memory(), tree.cpu_seconds()
        held = await each(legs, 25, lambda: arena.leg(new_session(), "client"), seconds)
        await idle(tree)
        after, cpu = tree.memory(), tree.cpu_seconds() - cpu
        errors = [leg.error for leg in arena.legs if leg.error]
        if errors:
            raise WorkloadError(errors[0])
    await idle(tree)
    async with Arena(target) as arena:
        half = await each(cycles // 2, 25, lambda: _come_and_go(arena), seconds / 2)
        await idle(tree)
        middle = tree.memory()
        rest = await each(cycles - cycles // 2, 25, lambda: _come_and_go(arena), seconds / 2)
        await idle(tree)
        end = tree.memory()
    return {
        "legs": held,
        "uss_per_leg": (after.uss - before.uss) / held,
        "cpu_ms_per_connect": cpu / held * 1e3,
        "cycles": half + rest,
        "churn_growth": end.uss - middle.uss,
        "churn_cycles_measured": rest,
        "uss": end.uss,
    }


async def _come_and_go(arena: Arena) -> None:
    leg = await arena.leg(new_session(), "client")
    arena.legs.remove(leg)
    leg.transport.send_close()
    try:
        await asyncio.wait_for(leg.transport.wait_disconnected(), 10)
    except TimeoutError:
        raise WorkloadError("no answer to a close frame for 10 s") from None


async def stalled(target: Target, bytes_limit: int, seconds: float) -> Figures:
    """Growth of the server while a sender pushes 64 KiB frames at a peer that stopped reading.

    Ends at `bytes_limit`, after `seconds`, when the relay ends the session, or when nothing more was taken
    for a while: then the sender is held back, as it should be.
    """
    patience = min(2.0, seconds / 2)
    trace = make_trace([64 * KIB] * 16, 64 * KIB)
    tree = ProcessTree(target.pid)
    async with Arena(target) as arena:
        near, far = await arena.pair(new_session(), partial(Leg, trace))
        await run_streams([Stream(near, far, trace, MIB, min(target.window_frames, 16))], 0.1)
        far.raw.pause_reading()
        start = peak = tree.rss()
        sample_at = time.monotonic()
        batches = itertools.cycle(trace.plain if near.is_server else trace.masked)
        accepted, stop_at, moved_at = 0, time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < stop_at and not near.error and accepted < bytes_limit:
            for batch in itertools.takewhile(lambda _: near.can_write(), itertools.islice(batches, 16)):
                near.raw.write(batch.wire)
                accepted += batch.payload_bytes
                moved_at = time.monotonic()
            if not near.can_write() and time.monotonic() - moved_at > patience:
                break
            await asyncio.sleep(0 if near.can_write() else 0.01)
            if time.monotonic() > sample_at:
                peak, sample_at = max(peak, tree.rss()), time.monotonic() + 0.02
        await idle(tree, 1.0)
        return {
            "rss_growth": max(peak, tree.rss()) - start,
            "accepted_bytes": accepted,
            "held_back": float(not near.can_write()),
            "ended_by_relay": float(bool(near.error)),
        }


WORK: dict[str, Callable[..., Awaitable[Figures]]] = {
    "small": lambda target, seconds: stream(target, "small", seconds),
    "large": lambda target, seconds: stream(target, "large", seconds),
    "huge": lambda target, seconds: stream(target, "huge", seconds),
    "mixed": lambda target, seconds: stream(target, "mixed", seconds, both_ways=True),
    "paced": paced,
    "rtt": rtt,
    "pairs": pairs,
    "waiting": waiting,
    "stalled": stalled,
    "nodes-small": lambda target, seconds: across(target, "nodes-small", seconds),
    "nodes-large": lambda target, seconds: across(target, "nodes-large", seconds),
    "nodes-rtt": rtt,
    "nodes-same": on_one_node,
    "joins": joins,
    "checkpoint": checkpoint,
    "rtt-checkpoint": rtt_checkpoint,
}


async def _figures(job: Job) -> Figures:
    return await WORK[job.workload](job.target, **job.options)


def main() -> None:
    """Do the jobs of stdin, one after the other, until it ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for line in sys.stdin:
        job = Job.from_json(json.loads(line))
        try:
            answer: dict[str, Any] = {"figures": uvloop.run(_figures(job))}
        except WorkloadError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - any failure is this job's answer, the next may work
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
