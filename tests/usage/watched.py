"""The relay's ASGI application, and beside it a watch on the event loop: how late it does what is due.

How much longer each wait of `STEP_SECONDS` took goes to the file that `LOOP_LAG_FILE` names: milliseconds,
one a line.
"""

import asyncio
import os
from pathlib import Path

from lemcloud.asgi import application
from relay import servers

__all__ = ["application"]

STEP_SECONDS = 0.005


class Watch:
    """One chain of timers."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._file = path.open("w", buffering=1)
        self._wait()

    def _wait(self) -> None:
        self._due = self._loop.time() + STEP_SECONDS
        self._loop.call_at(self._due, self._note)

    def _note(self) -> None:
        self._file.write(f"{1000 * (self._loop.time() - self._due):.1f}\n")
        self._wait()


servers.on_start(lambda: Watch(Path(os.environ["LOOP_LAG_FILE"])))
