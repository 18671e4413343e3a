"""Real relays that share a database, and what their books say."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row

from relay.ledger.records import COUNTED
from tests.behaviour.clients import pair
from tests.databases import Postgres
from tests.records import Row, check_line, check_session, has_ended
from tests.relays import START_SECONDS, Relay

CHECKPOINT_SECONDS = 0.5

SERVER = "daphne spliced"


class Books:
    """A database, the relays that write to it, and what they have printed."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.relays: list[Relay] = []

    def relay(self, var: str = "var", **environ: str) -> Relay:
        """One more relay, not started; those with the same `var` share their data."""
        folder = self.folder / f"relay-{uuid4().hex[:8]}"
        folder.mkdir()
        (self.folder / var).mkdir(exist_ok=True)
        defaults = {
            "DATABASE_URL": self.url,
            "RELAY_VAR_DIR": str(self.folder / var),
            "RELAY_CHECKPOINT_SECONDS": str(CHECKPOINT_SECONDS),
            "RELAY_LEDGER_WRITE_SECONDS": "1",
        }
        self.relays.append(Relay(SERVER, folder, {**defaults, **environ}))
        return self.relays[-1]

    @contextmanager
    def running(self, var: str = "var", **environ: str) -> Iterator[Relay]:
        """A relay for the length of a block, which may end it otherwise."""
        relay = self.relay(var, **environ)
        relay.serve()
        try:
            yield relay
        finally:
            relay.stop()

    def rows(self) -> list[Row]:
        """All sessions, with their legs' rows under `legs`."""
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            sessions = connection.execute("SELECT * FROM relay_relaysession").fetchall()
            legs = connection.execute("SELECT * FROM relay_relayleg").fetchall()
        rows: dict[Any, Row] = {row["session_uuid"]: {**row, "legs": []} for row in sessions}
        for leg in legs:
            if leg["session_uuid"] in rows:  # else it came between the two queries
                rows[leg["session_uuid"]]["legs"].append(leg)
        return list(rows.values())

    def lines(self) -> list[dict[str, Any]]:
        return [line for relay in self.relays for line in relay.lines("session_closed")]

    def spools(self) -> list[Path]:
        return [path for path in self.folder.rglob("spool/*") if path.stat().st_size]

    async def until(self, happened: Any, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}\n" + "\n".join(relay.output() for relay in self.relays))
            await asyncio.sleep(0.05)

    async def all_closed(
        self, sessions: int, received: Mapping[str, Mapping[str, int]] | None = None
    ) -> list[Row]:
        """The rows when so many are closed; none is open, and for each there is one line.

        Each agrees with its legs, with its line and with what its clients `received`, by session id.
        """

        def closed() -> bool:
            rows = self.rows()
            return len(rows) >= sessions and all(map(has_ended, rows))

        await self.until(closed, f"{sessions} closed rows and no open one")
        await self.until(lambda: len(self.lines()) >= sessions, f"{sessions} lines")
        rows = self.rows()
        assert len(rows) == sessions
        assert self.check(rows, received) == set()
        return rows

    def check(self, rows: list[Row], received: Mapping[str, Mapping[str, int]] | None = None) -> set[str]:
        """Each session has one line at most, and all that tells of it agrees, as `all_closed` has it.

        Gives those without a line.
        """
        by_uuid = {str(row["session_uuid"]): row for row in rows}
        lines = self._line_of_each(by_uuid)
        received = received or {}
        assert received.keys() <= {row["session_id"] for row in rows}, "a session has no row"
        for uuid, row in by_uuid.items():
            check_session(row, lines.get(uuid), received.get(row["session_id"]))
        return by_uuid.keys() - lines.keys()

    def check_lines(self, rows: list[dict[str, Any]]) -> set[str]:
        """As `check`, of rows without their legs, as an export has them."""
        by_uuid = {str(row["session_uuid"]): row for row in rows}
        lines = self._line_of_each(by_uuid)
        for uuid, line in lines.items():
            check_line(by_uuid[uuid], line)
        return by_uuid.keys() - lines.keys()

    def _line_of_each(self, by_uuid: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
        lines = {line["session_uuid"]: line for line in self.lines()}
        assert len(lines) == len(self.lines()), "a session has two lines"
        assert lines.keys() <= by_uuid.keys()
        return lines


async def exchange(relay: Relay, session_id: str, frames: int) -> dict[str, int]:
    """A whole session; gives what its legs received."""
    received = dict.fromkeys(COUNTED, 0)
    async with pair(relay, session_id) as (client, server):
        for number in range(frames):
            await client.send(bytes(10 * number + 1))
            received["bytes_client_to_server"] += len(await server.recv())
            received["frames_client_to_server"] += 1
        await server.send(b"thanks")
        received["bytes_server_to_client"] += len(await client.recv())
        received["frames_server_to_client"] += 1
    return received


@contextmanager
def away(postgres: Postgres, how: str) -> Iterator[None]:
    """The database is stopped, or hangs with all its connections, for the length of a block."""
    getattr(postgres, how)()
    try:
        yield
    finally:
        postgres.start() if how == "stop" else postgres.resume()
