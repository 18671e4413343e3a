"""The ledger while its database is away: the spool takes what comes, and all of it is in the tables after."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections

from relay import conf
from relay.ledger import Ledger, log_line
from relay.ledger.writing.spool import Entry, Spool, spools
from relay.models import RelayLeg, RelaySession
from tests.databases import Database, Postgres, as_default
from tests.usage.samples import START, ended, leg, live
from tests.usage.test_ledger import Writes, assert_row_equals, lines, of_ledger, wait_until, writes
from tests.usage.test_ledger_model import Steps
from tests.usage.test_spool import largest_file, on_disk

__all__ = ["lines", "writes"]

SOON = 20.0

numbers = count()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings in force, to change for a test."""

    def change(**values: Any) -> None:
        changed = conf.current().model_copy(update=values)
        monkeypatch.setattr(conf, "current", lambda: changed)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def ledger(database: Database, folder: Path) -> Iterator[Ledger]:
    made = Ledger(batch_seconds=0, spool_dir=folder)
    yield made
    made.close(SOON)


def spooled(ledger: Ledger) -> bool:
    return ledger.unwritten == 0 and ledger.spooled_bytes > 0


def test_records_are_on_the_disk_and_not_in_memory_while_the_database_is_away(
    ledger: Ledger, writes: Writes, folder: Path, lines: list[str]
) -> None:
    writes.failure = OperationalError("away")
    for number in range(100):
        ledger.record(live(number, legs=(leg(number),)))
        ledger.record(ended(number, legs=(leg(number, left_at=START),)))
    wait_until(lambda: spooled(ledger))
    ends = [record for record in on_disk(folder) if record.closed]
    assert sorted(r.session_id for r in ends) == sorted(f"session-{n}" for n in range(100))
    wait_until(lambda: len(lines) == 100)
    writes.failure = None
    assert ledger.flush(SOON)
    assert not list(folder.iterdir())
    for number in range(100):
        assert_row_equals(ended(number, legs=(leg(number, left_at=START),)))
    assert len(lines) == 100


def test_a_session_across_nodes_is_safe_on_the_disk_and_its_line_waits_for_the_row(
    database: Database, writes: Writes, folder: Path, lines: list[str]
) -> None:
    """The other node may be first to end the row, and prints the line then."""
    ledger = Ledger(node="us:1:1", batch_seconds=0, spool_dir=folder)
    writes.failure = OperationalError("away")
    across = ended(1, paired_at=START, legs=(leg(1, left_at=START),))
    both_here = ended(2, paired_at=START, legs=(leg(2, left_at=START), leg(3, left_at=START, role="server")))
    ledger.record(across)
    ledger.record(both_here)
    ledger.safe(across.session_uuid).result(SOON)
    assert across in on_disk(folder)
    wait_until(lambda: bool(lines))
    assert lines == [log_line(both_here)]
    writes.failure = None
    assert ledger.close(SOON)
    assert lines == [log_line(both_here), log_line(across)]


def test_a_session_that_ends_while_its_checkpoint_is_written_has_its_line(
    ledger: Ledger, writes: Writes, lines: list[str]
) -> None:
    """The end comes between the moment the writer takes the live record and the one it's safe."""
    ends = [ended(number) for number in range(2)]

    original = writes.original

    def end_one(records: Any) -> None:
        if ends and not any(record.closed for record in records):
            ledger.record(ends.pop())

    def write(records: Any, using: str) -> Any:
        end_one(records)
        return original(records, using)

    writes.original = write
    ledger.record(live(1))
    assert ledger.flush(SOON)
    wait_until(lambda: len(lines) == 1)
    writes.failure = OperationalError("away")
    assert ledger._spool is not None
    append = ledger._spool.append

    def end_one_first(entries: list[Entry]) -> set[Any]:
        end_one([entry.record for entry in entries])
        return append(entries)

    ledger._spool.append = end_one_first
    ledger.record(live(0))
    wait_until(lambda: len(lines) == 2)
    writes.failure = None
    assert ledger.flush(SOON)
    assert len(lines) == 2


def test_what_comes_after_the_outage_is_written_after_what_came_during_it(
    ledger: Ledger, writes: Writes
) -> None:
    writes.failure = OperationalError("away")
    ledger.record(live(1, bytes_client_to_server=1, legs=(leg(1),)))
    wait_until(lambda: spooled(ledger))
    writes.failure = None
    ledger.record(live(1, bytes_client_to_server=2, legs=(leg(1), leg(2, role="server"))))
    assert ledger.flush(SOON)
    assert_row_equals(live(1, bytes_client_to_server=2, legs=(leg(1), leg(2, role="server"))))


def test_what_waits_is_on_the_disk_before_a_database_that_was_away_is_tried_again(
    database: Database, writes: Writes, folder: Path
) -> None:
    """Where it hangs, the attempt takes seconds."""
    ledger = Steps(batch_seconds=0, spool_dir=folder, clock=lambda: now)
    on_the_disk: list[list[str]] = []

    def write(records: Any, using: str) -> Any:
        on_the_disk.append([record.session_id for record in on_disk(folder)] if folder.exists() else [])
        raise OperationalError("still away")

    writes.original = write
    now = 0.0
    ledger.record(live(1))
    ledger._step()
    ledger.record(ended(2))
    now = SOON
    ledger._step()
    assert on_the_disk == [[], ["session-1", "session-2"]]


def test_a_spool_is_replayed_at_the_next_start_and_prints_no_line_again(
    database: Database, folder: Path, lines: list[str]
) -> None:
    spool = Spool(folder, "host:1:1", 10**6)
    spool.append([Entry(live(1)), Entry(ended(2))])
    spool.append([Entry(ended(1, legs=(leg(1, left_at=START),)))])
    spool.close()
    ledger = Ledger(node="host:2:2", batch_seconds=0, spool_dir=folder)
    ledger.start()
    wait_until(lambda: not list(folder.iterdir()))
    assert ledger.close(SOON)
    assert_row_equals(ended(1, legs=(leg(1, left_at=START),)))
    assert_row_equals(ended(2))
    assert lines == []


def test_replaying_a_spool_twice_changes_nothing(database: Database, folder: Path, lines: list[str]) -> None:
    spool = Spool(folder, "host:1:1", 10**6)
    spool.append([Entry(ended(1, legs=(leg(1, left_at=START),))), Entry(live(2))])
    spool.close()
    content = spool.path.read_bytes()
    for _ in range(2):
        spool.path.write_bytes(content)
        ledger = Ledger(node="host:2:2", batch_seconds=0, spool_dir=folder)
        ledger.start()
        wait_until(lambda: not list(folder.iterdir()))
        assert ledger.close(SOON)
    assert RelaySession.objects.count() == 2
    assert RelayLeg.objects.count() == 1


def test_a_living_processs_spool_is_left_alone(database: Database, folder: Path) -> None:
    spool = Spool(folder, "host:1:1", 10**6)
    spool.append([Entry(live(1))])
    ledger = Ledger(node="host:2:2", batch_seconds=0, spool_dir=folder)
    ledger.record(live(2))
    assert ledger.close(SOON)
    assert RelaySession.objects.get().session_id == "session-2"
    assert on_disk(folder) == [live(1)]
    spool.close()


def test_on_a_full_disk_records_wait_in_memory_and_it_says_so(
    ledger: Ledger, writes: Writes, folder: Path, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    writes.failure = OperationalError("away")
    with largest_file(0):
        ledger.record(ended(1))
        wait_until(lambda: bool(ledger.spool_error))
        assert ledger.spool_error == "File too large"
        assert ledger.unwritten == 1
        wait_until(lambda: lines == [log_line(ended(1))])
        assert any(record.levelname == "ERROR" for record in of_ledger(caplog))
    ledger.record(ended(2))
    wait_until(lambda: spooled(ledger))
    assert ledger.spool_error == ""
    writes.failure = None
    assert ledger.flush(SOON)
    assert_row_equals(ended(1))
    assert_row_equals(ended(2))


def test_a_full_spool_keeps_the_rest_in_memory(
    database: Database, writes: Writes, folder: Path, settings: Any
) -> None:
    settings(spool_bytes=5000)
    ledger = Ledger(batch_seconds=0, spool_dir=folder)
    writes.failure = OperationalError("away")
    for number in range(50):
        ledger.record(ended(number))
    wait_until(lambda: ledger.spool_error == "it is full")
    assert ledger.unwritten + len(on_disk(folder)) == 50
    writes.failure = None
    assert ledger.close(SOON)
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == 50


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_sqlite_file_that_someone_keeps_locked_is_away(
    database: Database, folder: Path, settings: Any
) -> None:
    settings(ledger_write_seconds=0.2)
    ledger = Ledger(batch_seconds=0, spool_dir=folder)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN EXCLUSIVE")
        ledger.record(ended())
        wait_until(lambda: spooled(ledger))
        cursor.execute("ROLLBACK")
    assert ledger.close(SOON)
    assert_row_equals(ended())


@pytest.fixture
def own_postgres(postgres: Postgres, django_db_blocker: Any) -> Iterator[Postgres]:
    """The server, and a database that nobody else has a connection to."""
    name = f"outage_{next(numbers)}"
    with django_db_blocker.unblock(), as_default(postgres.create(name)):
        call_command("migrate", verbosity=0)
        connections["default"].close()
        yield postgres


@pytest.mark.parametrize("outage", ["stop", "pause"])
def test_what_comes_while_postgresql_is_stopped_or_hangs_is_on_the_disk_soon(
    own_postgres: Postgres, folder: Path, settings: Any, outage: str, lines: list[str]
) -> None:
    settings(ledger_write_seconds=0.5)
    ledger = Ledger(batch_seconds=0, spool_dir=folder)
    ledger.record(live(0))
    assert ledger.flush(SOON)
    getattr(own_postgres, outage)()
    try:
        for number in range(1000):
            ledger.record(live(number))
            ledger.record(ended(number))
        wait_until(lambda: spooled(ledger))
        wait_until(lambda: len(lines) == 1000)
    finally:
        own_postgres.start() if outage == "stop" else own_postgres.resume()
    assert ledger.close(SOON)
    assert not list(folder.iterdir())
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == 1000
    assert len(lines) == 1000


def test_a_process_that_ends_without_its_database_leaves_its_records_to_the_next(
    database: Database, folder: Path
) -> None:
    code = (
        "import django, sys; django.setup()\n"
        "from pathlib import Path\n"
        "from relay.ledger import Ledger\n"
        "from tests.usage.samples import ended\n"
        "ledger = Ledger(exit_seconds=3, spool_dir=Path(sys.argv[1]))\n"
        "for number in range(200): ledger.record(ended(number))\n"
    )
    away = "sqlite:////nowhere/at/all" if database.vendor == "sqlite" else "postgres://x@127.0.0.1:1/x"
    environ = {**os.environ, "DATABASE_URL": away, "DJANGO_SETTINGS_MODULE": "lemcloud.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code, folder], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "ERROR" not in done.stderr
    assert "are kept in" in done.stderr
    ledger = Ledger(node="host:2:2", batch_seconds=0, spool_dir=folder)
    ledger.start()
    wait_until(lambda: not spools(folder))
    assert ledger.close(SOON)
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == 200
