"""Relay processes for tests: started from their servers' own command lines, on a free port, with data of
their own."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from tests.tables import rows
from tests.tokens import SECRET_KEY

ROOT = Path(__file__).resolve().parents[1]

START_SECONDS = 30.0
"""Deadline for a server to listen, and for what tests wait for; never how long it takes."""

COMMANDS = {
    "daphne spliced": ["daphne", "-p", "{port}", "lemcloud.asgi:application"],
    "daphne": ["daphne", "-p", "{port}", "lemcloud.asgi:application"],
    "uvicorn": [
        "uvicorn", "--port", "{port}", "--ws-max-size", "{max_message_bytes}",
        "--ws-per-message-deflate", "false",
        # Deflate would hide back-pressure; see the README on uvicorn.
        "--timeout-graceful-shutdown", "10",
        "--no-proxy-headers",  # else it believes anyone on this machine, whatever RELAY_TRUSTED_PROXIES says
        "--lifespan", "on",  # else it serves as well where there is none
        "--no-access-log", "lemcloud.asgi:application",
    ],
}  # fmt: skip

ENVIRON = {"uvicorn": {"MALLOC_MMAP_THRESHOLD_": "131072"}}
"""What belongs to a server's command; see the README on uvicorn."""

NOISE = (
    # uvicorn logs a client's bad UTF-8 with a traceback of its own,
    r"ERROR:    Invalid UTF-8 sequence received from client\..*?UnicodeDecodeError:[^\n]*\n",
    # and calls it an error of the application when a client is gone before it is accepted.
    r"ERROR:    ASGI callable returned without completing handshake\.\n",
)
"""What other servers log by themselves about bad clients; nothing of ours may match."""


class Relay:
    """One running relay process."""

    host = "127.0.0.1"

    def __init__(self, server: str, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.server = server
        self.folder = folder
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RELAY_", "REDIS_", "DATABASE_"))},
            "SECRET_KEY": SECRET_KEY,
            "RELAY_VAR_DIR": str(folder),
            "PYTHONWARNINGS": "error::ResourceWarning",
            "RELAY_SPLICE": str(server == "daphne spliced"),
            **ENVIRON.get(server, {}),
            **(environ or {}),
        }
        self.max_message_bytes = int(self.environ.get("RELAY_MAX_MESSAGE_BYTES", 1024 * 1024))
        self.port = free_port()
        self.url = f"ws://{self.host}:{self.port}"
        self.http_url = f"http://{self.host}:{self.port}"
        parts = (
            part.format(port=self.port, max_message_bytes=self.max_message_bytes) for part in COMMANDS[server]
        )
        self.command = [sys.executable, "-m", *parts]
        """What it's started with; a test may change that before."""
        self.beside: list[str] = []
        """What takes a management command to where the relay is, should that be a namespace of its own."""
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Migrate and serve; returns when the port takes connections."""
        self.manage("migrate", "--verbosity", "0")
        self.serve()

    def serve(self) -> None:
        """As `start`, on a database that has its tables."""
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environ, stdout=out, stderr=err,
                start_new_session=True,  # Ctrl-C is for whoever started it, who then stops it in order
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection((self.host, self.port)),
            ):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.server} did not start:\n{self.output()}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a management command beside the relay, with its settings."""
        return subprocess.run(
            [*self.beside, sys.executable, str(ROOT / "manage.py"), *arguments],
            cwd=ROOT, env=self.environ, capture_output=True, text=True, timeout=60, check=check,
        )  # fmt: skip

    def output(self) -> str:
        """All it has written to stdout and stderr."""
        return "".join((self.folder / name).read_text() for name in ("stdout", "stderr"))

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The JSON lines on stdout of this event; any line that isn't JSON is an error."""
        whole = (self.folder / "stdout").read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["event"] == event]

    async def opened(self, session_id: str) -> None:
        """Returns when the first leg that is connected is seated: before the next one, in one process."""

    async def paired(self, session_id: str) -> None:
        """Returns when two legs that are connected have met: at once, in one process."""

    def rows(self, session_id: str) -> list[dict[str, Any]]:
        """The rows of a session id, with their legs' under `legs`; see `tests.rows.booked`."""
        return rows(self.environ, session_id)

    async def session_closed(self, session_id: str, seen: Set[str] = frozenset()) -> dict[str, Any]:
        """The `session_closed` line of `session_id` whose session is not in `seen`, when it's there."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for line in self.lines("session_closed"):
                if line["session_id"] == session_id and line["session_uuid"] not in seen:
                    return line
            await asyncio.sleep(0.02)
        raise AssertionError(f"no session_closed line for {session_id}")

    def check_logs(self) -> None:
        """No traceback and no error on stderr, whatever the tests did to it."""
        log = (self.folder / "stderr").read_text()
        for noise in NOISE:
            log = re.sub(noise, "", log, flags=re.DOTALL)
        assert not re.search(r"Traceback|ERROR|CRITICAL|Exception ignored", log), log


@contextlib.contextmanager
def running(
    server: str, folder: Path, environ: dict[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[Relay]:
    """A relay for the length of a block, with more `options` of its server; its logs have to be clean at the
    end."""
    folder.mkdir(parents=True, exist_ok=True)
    relay = Relay(server, folder, environ)
    relay.command[-1:-1] = options
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
    relay.check_logs()


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
