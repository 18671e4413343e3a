"""A file from one process to another: by the client, without encryption in two ways, and by wormhole."""

import filecmp
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jwt

from .contestants import BIN, ROOT, SECRET_KEY, Unavailable
from .contestants import BY_NAME as CONTESTANTS
from .exports import LAUNCHER
from .measure import cpu_seconds
from .runner import Cell, Server, free_port, wait_until_listening

NOISE, PIPE, PLAIN, WORMHOLE = "files-client", "files-pipe", "files-plain", "files-wormhole"

TITLES = {
    NOISE: "`send` and `receive` of the client, through Lem Relay on Daphne",
    PIPE: "`pipe` of the client, but without handshake and encryption, through the same relay",
    PLAIN: "the same file through the same relay by the websockets library, without encryption or checking",
    WORMHOLE: "`wormhole send` and `wormhole receive` through magic-wormhole's transit relay, never directly",
}

LONGEST_SECONDS = 300
"""For one transfer."""

MEMORY = Path("/dev/shm")  # noqa: S108
"""Where the files are, if this exists: how fast a disk is shall not be measured."""


@dataclass(frozen=True)
class Way:
    """How a file goes over: two commands, the environment of both, and the process between them."""

    receive: Sequence[str]
    send: Sequence[str]
    environ: Mapping[str, str]
    server_pid: int


def run(megabytes: int, repetitions: int, tell: Callable[[str], None]) -> dict[str, Cell]:
    """Each in turn, `repetitions` times."""
    cells = {name: Cell() for name in TITLES}
    with ExitStack() as cleaning:
        home = str(MEMORY) if MEMORY.is_dir() else None
        folder = Path(cleaning.enter_context(tempfile.TemporaryDirectory(prefix="lem-bench-", dir=home)))
        file = folder / "file"
        with file.open("wb") as writing:
            for _ in range(megabytes):
                writing.write(os.urandom(1_000_000))
        relay = Server(CONTESTANTS["relay-daphne"])
        cleaning.callback(relay.stop)
        ways: dict[str, Iterator[Way]] = {
            NOISE: _client(relay, file),
            PIPE: _bare(relay, file, "bare_pipe"),
            PLAIN: _bare(relay, file, "plain_pipe"),
        }
        try:
            ways[WORMHOLE] = cleaning.enter_context(_wormhole(folder, file))
        except (FileNotFoundError, Unavailable) as error:
            cells[WORMHOLE].skipped = f"needs magic-wormhole, which make bench installs: {error}"
        for repetition, (name, way) in itertools.product(range(repetitions), ways.items()):
            tell(f"{repetition + 1}/{repetitions} files {name}")
            try:
                cells[name].runs.append(_measure(next(way), file))
            except RuntimeError as error:
                cells[name].runs.append(None)
                cells[name].failures.append(str(error))
    return cells


def _token() -> str:
    return jwt.encode({"sub": "bench", "exp": int(time.time()) + 3600}, SECRET_KEY)


def _copy(file: Path) -> Path:
    """Where the receiver puts it; removed after each time."""
    return file.parent / "received" / file.name


def _client(relay: Server, file: Path) -> Iterator[Way]:
    client = [sys.executable, "-m", "relay.client", "--url", f"ws://127.0.0.1:{relay.target.port}"]
    # A key and known peers of each one's own.
    one, two = (
        [*client, "--key-file", str(file.parent / f"{who}.pem"), "--known-peers", str(file.parent / who)]
        for who in ("one", "two")
    )
    for number in itertools.count():
        session = ["--session", f"noise-{number}"]
        yield Way(
            [*one, "receive", *session, "--into", str(_copy(file).parent)],
            [*two, "send", *session, str(file)],
            {"RELAY_TOKEN": _token()},
            relay.target.pid,
        )


def _bare(relay: Server, file: Path, peer: str) -> Iterator[Way]:
    pipe = [sys.executable, "-m", f"tests.benchmarks.peers.{peer}"]
    for number in itertools.count():
        url = f"ws://127.0.0.1:{relay.target.port}/relay/{peer}-{number}"
        yield Way(
            [*pipe, "receive", url, str(_copy(file))],
            [*pipe, "send", url, str(file)],
            {"RELAY_TOKEN": _token()},
            relay.target.pid,
        )


@contextmanager
def _wormhole(folder: Path, file: Path) -> Iterator[Iterator[Way]]:
    """Its two servers, on this machine alone. Neither side listens, so they can only meet at the relay."""
    mailbox, transit = free_port(), free_port()
    servers = (
        ["wormhole-mailbox", f"--port=tcp:{mailbox}:interface=127.0.0.1", f"--channel-db={folder}/mailbox"],
        ["transitrelay", f"--port=tcp:{transit}:interface=127.0.0.1"],
    )
    processes = []
    try:
        for arguments in servers:
            with (folder / arguments[0]).open("wb") as log:
                processes.append(
                    subprocess.Popen([str(BIN / "twist"), *arguments], stdout=log, stderr=log, cwd=folder)
                )
        for process, port in zip(processes, (mailbox, transit), strict=True):
            wait_until_listening(process, port, lambda: "see its log")
        yield _wormholes(mailbox, transit, processes[1].pid, file)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _wormholes(mailbox: int, transit: int, pid: int, file: Path) -> Iterator[Way]:
    wormhole = [
        *(str(BIN / "wormhole"), "--relay-url", f"ws://127.0.0.1:{mailbox}/v1"),
        *("--transit-helper", f"tcp:127.0.0.1:{transit}"),
    ]
    options = ["--no-listen", "--hide-progress"]
    for number in itertools.count(1):
        code = f"{number}-bench-code"
        yield Way(
            [*wormhole, "receive", *options, "--accept-file", "--output-file", str(_copy(file)), code],
            [*wormhole, "send", *options, "--no-qr", "--code", code, str(file)],
            {},
            pid,
        )


def _measure(way: Way, file: Path) -> dict[str, float]:
    """One transfer, from the start of both processes to the exit of both. Raises `RuntimeError`."""
    copy = _copy(file)
    copy.parent.mkdir(exist_ok=True)
    server = cpu_seconds(way.server_pid)
    began = time.monotonic()
    both = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", LAUNCHER, *command],
            cwd=ROOT,
            env={**os.environ, **way.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in (way.receive, way.send)
    ]
    figures = []
    try:
        for process in both:
            out, err = process.communicate(timeout=LONGEST_SECONDS)
            if process.returncode:
                raise RuntimeError((err.strip() or "it ended without a word").splitlines()[-1])
            figures.append(json.loads(out.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(str(error)) from None
    finally:
        for process in both:
            process.kill()
            process.wait()
    seconds = time.monotonic() - began
    server = cpu_seconds(way.server_pid) - server
    if not filecmp.cmp(file, copy, shallow=False):
        raise RuntimeError("another file came out")
    copy.unlink()
    size = file.stat().st_size
    receiver, sender = (float(one["cpu_seconds"]) for one in figures)
    return {
        "seconds": seconds,
        "mb_per_s": size / seconds / 1e6,
        "server_cpu_s_per_gb": server / size * 1e9,
        "sender_cpu_s_per_gb": sender / size * 1e9,
        "receiver_cpu_s_per_gb": receiver / size * 1e9,
        "file_bytes": size,
    }
