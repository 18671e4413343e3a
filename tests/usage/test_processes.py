"""Usage of real relay processes on a real PostgreSQL: killed, restarted, and without their database."""

import asyncio
import json
import os
import re
import shlex
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from tests.behaviour.clients import connect, pair
from tests.records import dumped
from tests.relays import Relay
from tests.tokens import token
from tests.usage.books import Books, away, exchange

SESSIONS = 1000

OUTAGE_SECONDS = 30.0

LAG_MS = 50.0

SPOOL_KIB = 64


async def test_two_nodes_settle_a_third_at_the_same_time_and_there_is_one_close_and_one_line(books):
    with books.running("one"), books.running("two"):
        with books.running("three") as mortal:
            async with connect(mortal, "waits", token()), pair(mortal, "talks"):
                await books.until(lambda: len(books.rows()) == 2, "both are recorded")
                mortal.process.kill()
                mortal.process.wait()
        rows = await books.all_closed(2, {"waits": figures(), "talks": figures()})
    assert [row["reason"] for row in rows] == ["node_lost"] * 2


def watched(relay: Relay) -> Path:
    """Have `relay` write down how late its event loop is; gives the file, see `tests.usage.watched`."""
    relay.command = [part.replace("lemcloud.asgi", "tests.usage.watched") for part in relay.command]
    relay.environ["LOOP_LAG_FILE"] = str(relay.folder / "lag")
    return relay.folder / "lag"


def p99(lag: Path, since: int = 0) -> float:
    """Of what was written to `lag` after its first `since` characters."""
    measured = sorted(map(float, lag.read_text()[since:].splitlines()[1:-1]))
    return measured[len(measured) * 99 // 100]


@pytest.mark.timeout(240)
@pytest.mark.alone
@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_a_thousand_sessions_begin_and_end_in_30_seconds_without_the_database(books, postgres, how):
    """Stopped, connections are refused; paused, they hang."""
    received: dict[str, dict[str, int]] = {}

    async def visitors(numbers: Iterator[int]) -> None:
        for number in numbers:
            received[f"room-{number}"] = await exchange(relay, f"room-{number}", number % 7)

    async def come_and_go(numbers: Iterable[int]) -> None:
        waiting = iter(numbers)
        await asyncio.gather(*(visitors(waiting) for _ in range(10)))

    relay = books.relay()
    lag = watched(relay)
    relay.serve()
    try:
        await come_and_go(range(SESSIONS, SESSIONS + 100))
        before = p99(lag)
        async with pair(relay, "before-and-after") as (client, server):
            await client.send(b"before")
            await server.recv()
            await books.until(lambda: "before-and-after" in {r["session_id"] for r in books.rows()}, "a row")
            process = psutil.Process(relay.process.pid)
            threads_before, sockets_before = process.num_threads(), process.num_fds()
            with away(postgres, how):
                began, written = time.monotonic(), len(lag.read_text())
                await come_and_go(range(SESSIONS))
                await books.until(books.spools, "the spool takes them")
                await asyncio.sleep(max(0.0, began + OUTAGE_SECONDS - time.monotonic()))
                threads, sockets = process.num_threads(), process.num_fds()
                meanwhile = p99(lag, written)
            await client.send(b"after")
            await server.recv()
    finally:
        assert relay.stop() == 0
    assert not books.spools()
    received["before-and-after"] = figures(up=[b"before", b"after"])
    rows = {row["session_id"]: row for row in await books.all_closed(SESSIONS + 101, received)}
    assert rows.keys() == received.keys()
    assert {row["reason"] for row in rows.values()} == {"peer_left"}
    print(f"event loop lag, p99: {meanwhile} ms, {before} ms before")  # noqa: T201 - shown by pytest -rP
    # Such a load alone makes it late on a busy machine, database or not.
    assert meanwhile < max(LAG_MS, 2 * before)
    # The spool, and one connection that is being tried, with the thread that watches it.
    assert threads <= threads_before + 3
    assert sockets <= sockets_before + 4


def figures(up: Iterable[bytes] = (), down: Iterable[bytes] = ()) -> dict[str, int]:
    """What is counted of a session whose clients have received these frames: `up` is to the server."""
    up, down = list(up), list(down)
    return {
        "bytes_client_to_server": sum(map(len, up)),
        "bytes_server_to_client": sum(map(len, down)),
        "frames_client_to_server": len(up),
        "frames_server_to_client": len(down),
    }


def with_a_disk_of(kib: int, folder: Path, relay: Relay) -> None:
    """Have `relay` see a small disk of its own at `folder`."""
    folder.mkdir()
    mounted = f"mount -t tmpfs -o size={kib}k tmpfs {folder} && exec "
    relay.command = [
        # Only root may mount, and everyone may be that in a namespace of their own.
        *("unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "--", "sh", "-c"),
        mounted + shlex.join(relay.command),
    ]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody writes to the SQLite file for the length of a block."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a byte more goes onto the disk for the length of a block."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        with suppress(OSError):
            while True:
                filler.write(bytes(1024))
        yield
    (disk / "filler").unlink()


async def everything_that_happens(relay: Relay, books: Books, outage: AbstractContextManager[None]) -> None:
    """Sessions before, in and across the outage; all of them are exact in the rows of `relay` afterwards."""
    received = {"early": await exchange(relay, "early", 3)}
    async with pair(relay, "across") as (client, server):
        await client.send(b"before")
        await server.recv()
        with outage:
            for number in range(20):
                received[f"room-{number}"] = await exchange(relay, f"room-{number}", 3)
            await books.until(books.spools, "the spool takes them")
            await client.send(b"during")
            await server.recv()
        await books.until(lambda: not books.spools(), "the spool is replayed")
    await books.until(lambda: len(books.lines()) == 22, "all lines")
    said = relay.manage("export_usage", "--from", "2026-01-01", "--to", "9999-01-01", "--format", "jsonl")
    rows = {row["session_id"]: row for row in map(json.loads, said.stdout.splitlines())}
    received["across"] = figures(up=[b"before", b"during"])
    for session_id, counted in received.items():
        assert {name: rows[session_id][name] for name in counted} == counted
    assert books.check_lines(list(rows.values())) == set()
    assert books.check(dumped(relay), received) == set()
    assert relay.stop() == 0


async def test_a_locked_sqlite_file_costs_no_record(books):
    database = books.folder / "var" / "relay.sqlite3"
    with books.running(DATABASE_URL="", RELAY_LEDGER_WRITE_SECONDS="0.5") as relay:
        relay.manage("migrate", "--verbosity", "0")
        await everything_that_happens(relay, books, locked(database))


async def test_a_sqlite_file_on_a_full_disk_costs_no_record(books):
    disk = books.folder / "small"
    relay = books.relay(
        DATABASE_URL="", RELAY_VAR_DIR=str(disk), RELAY_SPOOL_DIR=str(books.folder / "var" / "spool")
    )
    with_a_disk_of(8192, disk, relay)
    relay.command[-1] = relay.command[-1].replace(
        "exec ", f"{sys.executable} manage.py migrate --verbosity 0 && exec "
    )
    relay.serve()
    try:
        namespaces = ["--mount", *(["--user", "--preserve-credentials"] if os.geteuid() else [])]
        relay.beside = ["nsenter", "--target", str(relay.process.pid), *namespaces, "--"]
        await everything_that_happens(relay, books, full(Path(f"/proc/{relay.process.pid}/root{disk}")))
    finally:
        relay.stop()
    assert re.search("disk is full|disk I/O error", relay.output())


async def test_a_database_that_has_become_read_only_costs_no_record(books):
    """As a replica is, after a failover."""

    @contextmanager
    def read_only() -> Iterator[None]:
        with psycopg.connect(books.url, autocommit=True) as connection:
            name = connection.info.dbname
            change = f'ALTER DATABASE "{name}" SET default_transaction_read_only = '
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
            connection.execute(change + "on")
            connection.execute(cut, [name, connection.info.backend_pid])
            yield
            connection.execute("SET transaction_read_only = off")
            connection.execute(change + "off")
            connection.execute(cut, [name, connection.info.backend_pid])

    with books.running() as relay:
        await everything_that_happens(relay, books, read_only())


async def test_on_a_full_disk_without_the_database_all_goes_on_and_nothing_is_missing_afterwards(
    books, postgres
):
    spool = books.folder / "small"
    relay = books.relay(RELAY_SPOOL_DIR=str(spool), RELAY_ADMIT_SECONDS="1")
    with_a_disk_of(SPOOL_KIB, spool, relay)
    relay.serve()
    try:
        with away(postgres, "stop"):
            sessions = 2 * SPOOL_KIB  # of more than half a KiB each
            received = {f"room-{n}": await exchange(relay, f"room-{n}", 3) for n in range(sessions)}
            await books.until(lambda: failing(relay) == {"database", "spool"}, "it says so")
            await books.until(lambda: len(books.lines()) == sessions, "all lines")
        await books.until(lambda: not failing(relay), "it's ready again")
    finally:
        assert relay.stop() == 0
    assert "No space left on device" in relay.output()
    await books.all_closed(sessions, received)


def failing(relay: Relay) -> set[str]:
    """What `/ready` names."""
    return set(httpx.get(f"{relay.http_url}/ready", timeout=20).json().get("failing", ()))


async def test_what_is_in_the_spool_when_the_relay_is_told_to_stop_is_written_at_the_next_start(
    books, postgres
):
    with books.running(RELAY_DRAIN_SECONDS="2", RELAY_CLOSE_SECONDS="0.3") as relay, away(postgres, "stop"):
        received = {f"room-{number}": await exchange(relay, f"room-{number}", 3) for number in range(5)}
        relay.stop()
        assert books.spools()
    with books.running():
        await books.until(lambda: not books.spools(), "the spool is replayed")
    await books.all_closed(5, received)


async def test_a_killed_relay_that_had_no_database_has_all_of_it_in_the_spool(books, postgres):
    with books.running() as relay, away(postgres, "stop"):
        received = {f"room-{number}": await exchange(relay, f"room-{number}", 3) for number in range(5)}
        async with pair(relay, "live") as (client, server):
            await client.send(b"12345")
            await server.recv()
            await books.until(lambda: _in_spool(books, '"bytes_client_to_server":5,'), "a checkpoint")
            await books.until(lambda: len(books.lines()) == 5, "five lines")
            relay.process.kill()
            relay.process.wait()
    with books.running():
        received["live"] = figures(up=[b"12345"])
        rows = {row["session_id"]: row for row in await books.all_closed(6, received)}
        await books.until(lambda: not books.spools(), "the spool is replayed")
    assert rows["live"]["reason"] == "node_lost"
    assert {row["reason"] for name, row in rows.items() if name != "live"} == {"peer_left"}


def _in_spool(books: Books, text: str) -> bool:
    return any(text in path.read_text() for path in books.spools())


async def test_ready_names_a_spool_that_cannot_be_written_and_lines_are_printed(books, postgres):
    (books.folder / "file").touch()
    with books.running(
        RELAY_SPOOL_DIR=str(books.folder / "file" / "spool"), RELAY_ADMIT_SECONDS="1"
    ) as relay:
        with away(postgres, "stop"):
            received = await exchange(relay, "room", 3)
            await books.until(lambda: failing(relay) == {"database", "spool"}, "it says so")
            await books.until(lambda: len(books.lines()) == 1, "the line")
        await books.until(lambda: not failing(relay), "it's ready again")
    await books.all_closed(1, {"room": received})


async def test_a_relay_that_ends_in_order_leaves_no_spool_and_no_heartbeat(books):
    with books.running() as relay:
        received = await exchange(relay, "room", 3)
        async with connect(relay, "waits", token()):
            assert await asyncio.to_thread(relay.stop) == 0
    rows = {
        row["session_id"]: row for row in await books.all_closed(2, {"room": received, "waits": figures()})
    }
    assert (rows["room"]["reason"], rows["waits"]["reason"]) == ("peer_left", "restarting")
    assert not books.spools()
    with psycopg.connect(books.url) as connection:
        assert connection.execute("SELECT count(*) FROM relay_relaynode").fetchone() == (0,)
