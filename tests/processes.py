"""Server processes for tests: started from their own command line, watched, and stopped by their id."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]

DEADLINE = 20.0
"""Seconds after which whatever a test waits for counts as not happening; never how long it takes."""

OWN_VARIABLES = ("RELAY_", "REDIS_", "DATABASE_", "SESSION_TIMEOUT", "DJANGO_", "PORT")
"""Beginnings of variables that a developer's shell may have set, and that a test must not depend on."""


class ServerProcess:
    """A server for the length of a `with` block: listening at its begin, gone at its end.

    `command` is run by this Python with `-m`; `{port}` in it becomes a free port. `folder` becomes its
    `RELAY_VAR_DIR` and takes its stdout and stderr. At the end of the block it's told SIGTERM unless it
    has ended, and its stderr must hold no traceback (pass `clean=False` where one is what a test shows).
    """

    host = "127.0.0.1"

    cwd = ROOT
    """Where it is started."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environ: Mapping[str, str] | None = None,
        *,
        clean: bool = True,
    ) -> None:
        self.port = free_port()
        self.command = [sys.executable, "-m", *(part.replace("{port}", str(self.port)) for part in command)]
        self.folder = folder
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(OWN_VARIABLES)}
        self.environ = {**inherited, "RELAY_VAR_DIR": str(folder), **(environ or {})}
        self.clean = clean
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                self.command, cwd=self.cwd, env=self.environ, stdout=out, stderr=err, start_new_session=True
            )
        try:
            self.wait_until(self._listens, "listen")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()
        if kind is None and self.clean:
            assert not re.search(r"Traceback|Exception ignored|never retrieved", self.stderr), self.stderr

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it has logged so far."""
        return (self.folder / "stderr").read_text()

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The JSON objects it has printed so far, one a line, those of `event` if it's given."""
        whole = self.stdout.rpartition("\n")[0]
        objects = [json.loads(line) for line in whole.splitlines()]
        return [o for o in objects if event in (None, o.get("event"))]

    def tell(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its exit status, once it has ended; raises `subprocess.TimeoutExpired` if it doesn't in time."""
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM, seconds: float = DEADLINE) -> int:
        """Send it a signal unless it has ended, and give its exit status."""
        if self.process.poll() is None:
            self.tell(number)
        return self.wait(seconds)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait_until(self, happened: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
        """Return when `happened()` is true; fail at the deadline, or if the process ends before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"it ended instead of: {what}\n{self.stderr}"
            assert time.monotonic() < deadline, f"{seconds} s and it did not: {what}\n{self.stderr}"
            time.sleep(0.02)

    def _listens(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((self.host, self.port)):
            return True
        return False


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
