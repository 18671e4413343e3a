"""Usage of real relay processes on a real PostgreSQL: killed, restarted, and without their database."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row
from websockets.exceptions import ConnectionClosed

from tests.behaviour.clients import connect, pair
from tests.databases import Postgres
from tests.nodes.cluster import check_row
from tests.relays import START_SECONDS, Relay
from tests.tokens import token

CHECKPOINT_SECONDS = 0.5

LATE_SECONDS = 1.0
"""What a busy machine may add to a checkpoint: its slice, the batch, the transaction."""

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

    def rows(self) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM relay_relaysession").fetchall()

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

    async def all_closed(self, sessions: int) -> list[dict[str, Any]]:
        """The rows when so many are closed; none is open, and for each there is one line, which agrees."""

        def closed() -> bool:
            ends = [row["timestamp"] for row in self.rows()]
            return len(ends) >= sessions and all(ends)

        await self.until(closed, f"{sessions} closed rows and no open one")
        await self.until(lambda: len(self.lines()) >= sessions, f"{sessions} lines")
        rows = self.rows()
        assert len(rows) == sessions
        by_uuid = {str(row["session_uuid"]): row for row in rows}
        lines = {line["session_uuid"]: line for line in self.lines()}
        assert len(lines) == len(self.lines()), "a session has two lines"
        assert lines.keys() == by_uuid.keys()
        for uuid, line in lines.items():
            check_row(by_uuid[uuid], line)
        return rows


@pytest.fixture
def books(postgres: Postgres, tmp_path: Path) -> Books:
    made = Books(postgres.create(f"books_{uuid4().hex[:8]}"), tmp_path)
    made.relay().manage("migrate", "--verbosity", "0")
    del made.relays[:]  # that one never serves
    return made


class Chatter:
    """A pair that sends one frame after the other, each when the last has come; it knows what came when."""

    def __init__(self, relay: Relay, session_id: str, size: int) -> None:
        self.session_id = session_id
        self.size = size
        self.sent = 0
        self.arrivals: list[float] = []
        self._relay = relay

    async def run(self) -> None:
        try:
            async with pair(self._relay, self.session_id) as (client, server):
                while True:
                    self.sent += 1
                    await client.send(bytes(self.size))
                    await server.recv()
                    self.arrivals.append(time.monotonic())
        except (ConnectionClosed, OSError):
            pass

    def arrived_before(self, moment: float) -> int:
        return sum(arrival < moment for arrival in self.arrivals)


@pytest.mark.parametrize("seed", range(3))
async def test_after_kill_9_under_load_the_records_lack_a_checkpoint_at_most_and_claim_nothing(books, seed):
    moment = random.Random(seed).uniform(0.5, 2.5)
    with books.running() as relay:
        chatters = [Chatter(relay, f"load-{number}", 1000 + number) for number in range(10)]
        tasks = [asyncio.ensure_future(chatter.run()) for chatter in chatters]
        await asyncio.sleep(moment)
        relay.process.kill()
        killed = time.monotonic()
        relay.process.wait()
        await asyncio.wait(tasks)
    with books.running():
        rows = {row["session_id"]: row for row in await books.all_closed(len(chatters))}
    for chatter in chatters:
        row = rows[chatter.session_id]
        assert row["reason"] == "node_lost"
        known = chatter.arrived_before(killed - CHECKPOINT_SECONDS - LATE_SECONDS)
        assert known <= row["frames_client_to_server"] <= chatter.sent
        assert row["bytes_client_to_server"] == row["frames_client_to_server"] * chatter.size
        assert row["bytes_server_to_client"] == 0
    with psycopg.connect(books.url) as connection:
        (open_legs,) = connection.execute(
            "SELECT count(*) FROM relay_relayleg WHERE left_at IS NULL"
        ).fetchone()
    assert open_legs == 0


async def test_two_nodes_settle_a_third_at_the_same_time_and_there_is_one_close_and_one_line(books):
    with books.running("one"), books.running("two"):
        with books.running("three") as mortal:
            async with connect(mortal, "waits", token()), pair(mortal, "talks"):
                await books.until(lambda: len(books.rows()) == 2, "both are recorded")
                mortal.process.kill()
                mortal.process.wait()
        rows = await books.all_closed(2)
    assert [row["reason"] for row in rows] == ["node_lost"] * 2


async def exchange(relay: Relay, session_id: str, frames: int) -> dict[str, int]:
    """A whole session; gives what its legs received."""
    received = {"frames_client_to_server": 0, "bytes_client_to_server": 0, "bytes_server_to_client": 0}
    async with pair(relay, session_id) as (client, server):
        for number in range(frames):
            await client.send(bytes(10 * number + 1))
            received["bytes_client_to_server"] += len(await server.recv())
            received["frames_client_to_server"] += 1
        await server.send(b"thanks")
        received["bytes_server_to_client"] += len(await client.recv())
    return received


@contextmanager
def away(postgres: Postgres, how: str) -> Iterator[None]:
    """The database is stopped, or hangs with all its connections, for the length of a block."""
    getattr(postgres, how)()
    try:
        yield
    finally:
        postgres.start() if how == "stop" else postgres.resume()


@asynccontextmanager
async def lag(relay: Relay) -> AsyncIterator[list[float]]:
    """How long the relay's event loop takes to answer a ping, in seconds, again and again."""
    measured: list[float] = []

    async def measure() -> None:
        async with connect(relay, "watched", token()) as socket:
            while True:
                started = time.monotonic()
                await (await socket.ping())
                measured.append(time.monotonic() - started)
                await asyncio.sleep(0.01)

    task = asyncio.ensure_future(measure())
    try:
        yield measured
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_sessions_that_begin_and_end_without_the_database_are_all_there_afterwards(
    books, postgres, how
):
    sessions = 150
    with books.running(RELAY_LEDGER_WRITE_SECONDS="3") as relay:
        async with lag(relay) as measured:
            with away(postgres, how):
                received = {}
                for batch in range(0, sessions, 10):
                    ids = [f"room-{number}" for number in range(batch, batch + 10)]
                    all_of = await asyncio.gather(*(exchange(relay, one, int(one[5:]) % 7) for one in ids))
                    received.update(zip(ids, all_of, strict=True))
                await books.until(lambda: len(books.lines()) == sessions, "all lines")
                await books.until(books.spools, "the spool takes them")
        assert relay.stop() == 0
    assert not books.spools()
    rows = {row["session_id"]: row for row in await books.all_closed(sessions + 1)}
    for session_id, figures in received.items():
        assert {name: rows[session_id][name] for name in figures} == figures
        assert rows[session_id]["reason"] == "peer_left"
    # The clients here are slow, too, on a busy machine; what waits for the database waits for three seconds.
    assert sorted(measured)[len(measured) // 2] < 0.1
    assert max(measured) < 2, "the event loop waited for the database"


async def test_what_is_in_the_spool_when_the_relay_is_told_to_stop_is_written_at_the_next_start(
    books, postgres
):
    with books.running(RELAY_DRAIN_SECONDS="2", RELAY_CLOSE_SECONDS="0.3") as relay, away(postgres, "stop"):
        received = [await exchange(relay, f"room-{number}", 3) for number in range(5)]
        relay.stop()
        assert books.spools()
    with books.running():
        await books.until(lambda: not books.spools(), "the spool is replayed")
    rows = await books.all_closed(5)
    assert [row["bytes_client_to_server"] for row in rows] == [r["bytes_client_to_server"] for r in received]


async def test_a_killed_relay_that_had_no_database_has_all_of_it_in_the_spool(books, postgres):
    with books.running() as relay, away(postgres, "stop"):
        for number in range(5):
            await exchange(relay, f"room-{number}", 3)
        async with pair(relay, "live") as (client, server):
            await client.send(b"12345")
            await server.recv()
            await books.until(lambda: _in_spool(books, '"bytes_client_to_server":5,'), "a checkpoint")
            await books.until(lambda: len(books.lines()) == 5, "five lines")
            relay.process.kill()
            relay.process.wait()
    with books.running():
        rows = {row["session_id"]: row for row in await books.all_closed(6)}
        await books.until(lambda: not books.spools(), "the spool is replayed")
    assert (rows["live"]["reason"], rows["live"]["bytes_client_to_server"]) == ("node_lost", 5)
    assert {row["reason"] for name, row in rows.items() if name != "live"} == {"peer_left"}


def _in_spool(books: Books, text: str) -> bool:
    return any(text in path.read_text() for path in books.spools())


async def test_ready_names_a_spool_that_cannot_be_written_and_lines_are_printed(books, postgres):
    (books.folder / "file").touch()
    with books.running(
        RELAY_SPOOL_DIR=str(books.folder / "file" / "spool"), RELAY_ADMIT_SECONDS="1"
    ) as relay:

        def failing() -> set[str]:
            return set(httpx.get(f"{relay.http_url}/ready", timeout=20).json().get("failing", ()))

        with away(postgres, "stop"):
            figures = await exchange(relay, "room", 3)
            await books.until(lambda: failing() == {"database", "spool"}, "it says so")
            await books.until(lambda: len(books.lines()) == 1, "the line")
        await books.until(lambda: not failing(), "it's ready again")
    (row,) = await books.all_closed(1)
    assert row["bytes_client_to_server"] == figures["bytes_client_to_server"]


async def test_a_relay_that_ends_in_order_leaves_no_spool_and_no_heartbeat(books):
    with books.running() as relay:
        await exchange(relay, "room", 3)
        async with connect(relay, "waits", token()):
            assert await asyncio.to_thread(relay.stop) == 0
    await books.all_closed(2)
    assert not books.spools()
    with psycopg.connect(books.url) as connection:
        assert connection.execute("SELECT count(*) FROM relay_relaynode").fetchone() == (0,)
