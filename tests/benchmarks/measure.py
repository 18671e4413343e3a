"""What a server process costs: CPU to the nanosecond and memory, over the process and its children."""

import contextlib
import time
from dataclasses import dataclass

import psutil

CPUCLOCK_SCHED = 2
"""Linux: the clock of a process id that counts what the scheduler gave it (`clock_getcpuclockid(3)`)."""


def cpu_seconds(pid: int) -> float:
    """User and system seconds of all threads of `pid`, ended ones included.

    The process's own CPU clock, because /proc/PID/stat counts in ticks of 10 ms, which is coarse for a second
    of load. Raises `ProcessLookupError` when there is no such process.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED) / 1e9
    except OSError:
        pass
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(pid) from error
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held by a process tree: RSS, and USS, which leaves out what is shared with others."""

    rss: int
    uss: int


class ProcessTree:
    """A process and those it started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def pids(self) -> list[int]:
        """The process and its living descendants; empty when it is gone."""
        try:
            root = psutil.Process(self.pid)
            return [self.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """CPU seconds of all processes of the tree that are alive now."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                total += cpu_seconds(pid)
        return total

    def memory(self) -> Memory:
        """RSS and USS of the whole tree, in bytes."""
        rss = uss = 0
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                info = psutil.Process(pid).memory_full_info()
                rss, uss = rss + info.rss, uss + info.uss
        return Memory(rss, uss)

    def rss(self) -> int:
        """RSS of the whole tree, in bytes; cheap enough to sample often."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += psutil.Process(pid).memory_info().rss
        return total
