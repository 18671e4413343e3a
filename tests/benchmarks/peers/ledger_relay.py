"""The relay as it ships, with what measuring its usage ledger takes.

BENCH_LEDGER=off: sessions record nothing. GET /bench/watch begins to measure how late the event loop is;
/bench/checkpoint?seconds=S has all sessions looked at now, over S seconds, and over and over like the relay
itself, and /bench/recorded tells how many times one was `recorded` since; /bench/hold ends both and answers
with `lags_ms`.
"""

import asyncio
import json
import os
import time
from concurrent.futures import Future
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from lemcloud import asgi
from relay import sessions
from relay.ledger import Ledger, SessionRecord

TICK_SECONDS = 0.005


class Probe:
    """Looks at the event loop while it's asked to; costs nothing otherwise."""

    def __init__(self) -> None:
        self.lags_ms: list[float] = []
        self.recorded = 0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        self.lags_ms = []
        self._tick(time.perf_counter())

    def _tick(self, due: float) -> None:
        now = time.perf_counter()
        self.lags_ms.append(max(0.0, now - due) * 1000)
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick, now + TICK_SECONDS)

    def checkpoint(self, seconds: float) -> None:
        ours = sessions.of_this_process()
        self.hold()
        ours.settings = ours.settings.model_copy(update={"checkpoint_seconds": seconds})
        ours._unchecked.clear()
        ours._checkpoint()

    def hold(self) -> None:
        ours = sessions.of_this_process()
        if ours._checkpoint_timer is not None:
            ours._checkpoint_timer.cancel()
        self.recorded = 0

    def read(self) -> dict[str, Any]:
        """What was measured since `watch`; measures no more, and holds checkpoints."""
        found = {"lags_ms": self.lags_ms}
        self.hold()
        if self._timer is not None:
            self._timer.cancel()
        return found


probe = Probe()


class CountingLedger(Ledger):
    """The real one."""

    def record(self, record: SessionRecord) -> None:
        probe.recorded += 1
        super().record(record)


class NoLedger:
    """In place of a ledger: sessions do what they do, nothing is recorded."""

    spool_error = ""

    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def record(self, record: SessionRecord) -> None:
        pass

    def flush(self, timeout: float) -> bool:
        return True

    def safe(self, session: UUID) -> "Future[None]":
        done: Future[None] = Future()
        done.set_result(None)
        return done


sessions.service.Ledger = NoLedger if os.environ.get("BENCH_LEDGER") == "off" else CountingLedger  # type: ignore[misc]


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http" or not scope["path"].startswith("/bench/"):
        await asgi.application(scope, receive, send)
        return
    answer: dict[str, Any] = {}
    match scope["path"].removeprefix("/bench/"):
        case "watch":
            probe.watch()
        case "checkpoint":
            probe.checkpoint(float(parse_qs(scope["query_string"].decode())["seconds"][0]))
        case "recorded":
            answer = {"recorded": probe.recorded}
        case "hold":
            answer = probe.read()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
