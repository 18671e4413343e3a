"""What work costs: CPU of the server's nodes, of their broker and of this process, with the wall time."""

import asyncio
import time

import redis

from .legs import WorkloadError
from .measure import ProcessTree, cpu_seconds
from .plan import MIB, Target

Figures = dict[str, float]


class Meter:
    """CPU of the server's nodes, the broker and this process between two moments, with the wall time."""

    def __init__(self, target: Target) -> None:
        self._near = ProcessTree(target.pid)
        self._far = ProcessTree(target.far_pid) if target.far_pid else None
        self._broker_pid = target.broker_pid
        self._broker_port = target.broker_port
        self._commands_before = self._commands()
        self._start = self._read()

    def _read(self) -> tuple[float, float, float, float, float]:
        broker = cpu_seconds(self._broker_pid) if self._broker_pid else 0.0
        far = self._far.cpu_seconds() if self._far else 0.0
        return self._near.cpu_seconds(), far, broker, time.process_time(), time.perf_counter()

    def _commands(self) -> int:
        """Commands that the broker was sent so far, in scripts too; without those that ask it this."""
        if self._broker_port is None:
            return 0
        with redis.Redis(port=self._broker_port) as broker:
            stats = broker.info("commandstats")
        asking = ("cmdstat_info", "cmdstat_hello", "cmdstat_client")
        return sum(int(stat["calls"]) for name, stat in stats.items() if not name.startswith(asking))

    def commands_per_s(self) -> float:
        """How many commands a second the broker was sent since the start."""
        return (self._commands() - self._commands_before) / (time.perf_counter() - self._start[-1])

    def figures(self, frames: int, payload_bytes: int) -> Figures:
        """What `frames` frames of `payload_bytes` in all cost since the start."""
        near, far, broker, own, wall = (b - a for a, b in zip(self._start, self._read(), strict=True))
        server = near + far
        if not frames:
            raise WorkloadError("no frame came through in the time given")
        figures = {
            "frames": frames,
            "bytes": payload_bytes,
            "seconds": wall,
            "cpu_seconds": server,
            "cpu_us_per_frame": server / frames * 1e6,
            "cpu_s_per_gb": server / payload_bytes * 1e9,
            "broker_cpu_us_per_frame": broker / frames * 1e6,
            "frames_per_s": frames / wall,
            "mb_per_s": payload_bytes / wall / 1e6,
            "server_busy": server / wall,
            "generator_busy": own / wall,
        }
        if self._broker_port is not None:
            commands = self._commands() - self._commands_before
            figures |= {
                "near_cpu_seconds": near,
                "far_cpu_seconds": far,
                "broker_cpu_seconds": broker,
                "commands": commands,
                "commands_per_mib": commands / payload_bytes * MIB,
                "commands_per_10k_frames": commands / frames * 10_000,
            }
        return figures


async def idle(tree: ProcessTree, longest: float = 1.0) -> None:
    """Wait until the server has caught up: less than 5 % of a core over 100 ms."""
    stop_at = time.monotonic() + longest
    busy = tree.cpu_seconds()
    while time.monotonic() < stop_at:
        await asyncio.sleep(0.1)
        before, busy = busy, tree.cpu_seconds()
        if busy - before < 0.005:
            return
