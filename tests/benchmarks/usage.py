"""What the usage ledger costs: joins with it, and a checkpoint of as many sessions as descriptors allow."""

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from .echo import Echo, round_trips
from .legs import CONNECT_SECONDS, Arena, Leg, WorkloadError, each, new_session
from .measure import ProcessTree
from .meter import Figures, idle
from .plan import Target
from .stats import percentile
from .traffic import encode

PAIRS_AT_ONCE = 16
"""Enough that neither side waits for the other, few enough that nothing times out."""
WARM_UP_PAIRS = 100
"""Imports, caches, the database connection and its prepared statements."""
QUIET_SECONDS = 5.0
"""For a server to come to rest; each batch of records waits a tenth of a second before it's written."""
SPARE_DESCRIPTORS = 200
"""What a server needs beside its legs, rounded up."""
OPENING_SECONDS = 60.0
"""For all sessions of a crowd to come; a slow machine has fewer, and the report says how many."""
DIRTY_AT_ONCE = 50
CHECKPOINT_MARGIN = 1.0
"""Seconds after the last slice in which its records are written."""


async def joins(target: Target, seconds: float) -> Figures:
    """Sessions of two legs that come, meet and go, one after the other, for `seconds`.

    The CPU time is that up to when all of them are recorded, the wall time that of the joins themselves.
    """
    server = ProcessTree(target.pid)
    database = ProcessTree(target.database_pid) if target.database_pid else None
    async with Arena(target) as arena:
        await each(WARM_UP_PAIRS, PAIRS_AT_ONCE, lambda: _come_meet_and_go(arena))
        await _quiet(server)
        cpu, database_cpu = server.cpu_seconds(), database.cpu_seconds() if database else 0.0
        own, started = time.process_time(), time.perf_counter()
        sessions = await each(1_000_000, PAIRS_AT_ONCE, lambda: _come_meet_and_go(arena), seconds)
        own, wall = time.process_time() - own, time.perf_counter() - started
        busy = server.cpu_seconds() - cpu
        await _quiet(server)
        cpu = server.cpu_seconds() - cpu
        database_cpu = (database.cpu_seconds() if database else 0.0) - database_cpu
    legs = 2 * sessions
    return {
        "joins": legs,
        "joins_per_cpu_s": legs / cpu,
        "joins_per_s": legs / wall,
        "cpu_us_per_join": cpu / legs * 1e6,
        "database_cpu_us_per_join": database_cpu / legs * 1e6,
        "seconds": wall,
        "cpu_seconds": cpu,
        "server_busy": busy / wall,
        "generator_busy": own / wall,
    }


async def _come_meet_and_go(arena: Arena) -> None:
    near, far = ends = await arena.pair(new_session())
    near.transport.send_close()
    if not arena.target.pairs:
        far.transport.send_close()
    for leg in ends:
        try:
            await asyncio.wait_for(leg.transport.wait_disconnected(), CONNECT_SECONDS)
        except TimeoutError:
            raise WorkloadError("a leg stays open after the other has closed") from None
        arena.legs.remove(leg)


async def _quiet(server: ProcessTree) -> None:
    await asyncio.sleep(0.3)  # what was recorded last is being written now
    await idle(server, QUIET_SECONDS)


async def checkpoint(target: Target, sessions: int, rounds: int, seconds: float) -> Figures:
    """One checkpoint of `sessions` sessions, all of which have changed, spread over `seconds` as always.

    Measured from outside, for as long without a checkpoint as with one: `cpu_net` is the difference.
    """
    server = ProcessTree(target.pid)
    window = seconds + CHECKPOINT_MARGIN
    net: list[float] = []
    gross: list[float] = []
    lag: list[float] = []
    lag_idle: list[float] = []
    async with _crowd(target, sessions) as crowd:
        for _ in range(rounds):
            await crowd.make_dirty()
            await _quiet(server)
            costs: list[float] = []
            for lags in (lag_idle, lag):
                await crowd.probe("watch")
                if lags is lag:
                    await crowd.probe("checkpoint", seconds=seconds)
                cpu = server.cpu_seconds()
                await asyncio.sleep(window)
                costs.append(server.cpu_seconds() - cpu)
                lags += (found := await crowd.probe("hold"))["lags_ms"]
                if lags is lag:
                    crowd.check(found["recorded"])
            gross.append(costs[1])
            net.append(costs[1] - costs[0])
    return {
        "sessions": crowd.size,
        "cpu_net": median(net),
        "cpu_gross": median(gross),
        "cpu_us_per_session": median(net) / crowd.size * 1e6,
        "lag_p99_ms": percentile(lag, 0.99),
        "lag_max_ms": max(lag),
        "lag_idle_p99_ms": percentile(lag_idle, 0.99),
    }


async def rtt_checkpoint(target: Target, sessions: int, rounds: int, seconds: float) -> Figures:
    """Back and forth on one pair, without a checkpoint and with one of all sessions, in turns."""
    server = ProcessTree(target.pid)
    window = seconds + CHECKPOINT_MARGIN
    without: list[list[int]] = []
    during: list[list[int]] = []
    async with _crowd(target, sessions) as crowd:
        near, _ = await crowd.arena.pair(new_session(), make_far=Echo)
        for _ in range(rounds):
            await crowd.make_dirty()
            await _quiet(server)
            without.append(await round_trips(near, window))
            await crowd.probe("checkpoint", seconds=seconds)
            during.append(await round_trips(near, window))
            crowd.check((await crowd.probe("hold"))["recorded"])
    p99 = [[percentile(times, 0.99) / 1e3 for times in rounds] for rounds in (without, during)]
    return {
        "sessions": crowd.size,
        "p99_ratio": median(b / a for a, b in zip(*p99, strict=True)),
        "p99_without_us": median(p99[0]),
        "p99_us": median(p99[1]),
        "p50_without_us": percentile([t for times in without for t in times], 0.5) / 1e3,
        "p50_us": percentile([t for times in during for t in times], 0.5) / 1e3,
        "round_trips": sum(map(len, during)),
    }


class _Crowd:
    """Many live sessions on a server with the probe of `peers.ledger_relay`, whose checkpoints are held."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.ends: list[tuple[Leg, Leg]] = []
        self._frame = encode(b"\0" * 128, b"mask")

    @property
    def size(self) -> int:
        return len(self.ends)

    async def grow(self) -> None:
        self.ends.append(await self.arena.pair(new_session()))

    async def probe(self, act: str, **query: Any) -> Any:
        """Have the server's probe do something; see there."""
        url = f"http://127.0.0.1:{self.arena.target.port}/bench/{act}?{urlencode(query)}"
        return json.loads(await asyncio.to_thread(lambda: urlopen(url, timeout=CONNECT_SECONDS).read()))

    async def make_dirty(self) -> None:
        """One frame through each session, a few at a time, so that they aren't all one burst."""
        expected = {far: far.frames + 1 for _, far in self.ends}
        for number, (near, _) in enumerate(self.ends):
            near.raw.write(self._frame)
            if not number % DIRTY_AT_ONCE:
                await asyncio.sleep(0.005)
        stop_at = time.monotonic() + CONNECT_SECONDS
        while any(far.frames < frames for far, frames in expected.items()):
            if time.monotonic() > stop_at:
                raise WorkloadError("not every session let a frame through")
            await asyncio.sleep(0.05)

    def check(self, recorded: int) -> None:
        """Raise `WorkloadError` unless a checkpoint was one of all sessions."""
        if recorded < self.size:
            raise WorkloadError(f"{recorded:,} of {self.size:,} sessions were recorded in the time given")


@asynccontextmanager
async def _crowd(target: Target, sessions: int) -> AsyncIterator[_Crowd]:
    """`sessions` sessions, or as many as descriptors and time allow; their server is at rest."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Arena(target) as arena:
        crowd = _Crowd(arena)
        room = (most - SPARE_DESCRIPTORS) // 2
        await each(min(sessions, room), PAIRS_AT_ONCE, crowd.grow, OPENING_SECONDS)
        await crowd.probe("hold")
        await _quiet(ProcessTree(target.pid))
        yield crowd
