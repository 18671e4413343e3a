"""The ledger on both databases: every record once, the end stays the end, and outages lose nothing."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections

from relay.ledger import Ledger, SessionRecord, log_line
from relay.ledger.records import LINE_FIELDS, plain
from relay.ledger.writing import rows
from relay.ledger.writing.lines import REMEMBERED
from relay.models import CORRECTION_FIELDS, RelayLeg, RelaySession
from tests.databases import Database, Postgres, as_default
from tests.usage.samples import START, ended, leg, live, uuid

SOON = 20.0

numbers = count()


class Writes:
    """`rows.write`, watched: how often, and failing when told to."""

    def __init__(self) -> None:
        self.original = rows.write
        self.batches: list[int] = []
        self.failure: Exception | None = None

    def __call__(self, records: Any, using: str) -> Any:
        if self.failure is not None:
            raise self.failure
        had_ended = self.original(records, using)
        self.batches.append(len(records))
        return had_ended


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    watched = Writes()
    monkeypatch.setattr(rows, "write", watched)
    return watched


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is printed on `relay.usage`."""
    printed: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printed.append(record.getMessage())

    logger, handler = logging.getLogger("relay.usage"), Collect()
    others, logger.handlers = logger.handlers, [handler]
    yield printed
    logger.handlers = others


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    made = Ledger(batch_seconds=0)
    yield made
    made.close(SOON)


def only_row() -> RelaySession:
    return RelaySession.objects.get()


def assert_row_equals(record: SessionRecord) -> None:
    row = RelaySession.objects.get(pk=record.session_uuid)
    for field in RelaySession._meta.concrete_fields:
        if field.name == "traffic":
            assert row.traffic == [list(point) for point in record.traffic]
        elif field.name not in CORRECTION_FIELDS:
            assert getattr(row, field.attname) == getattr(record, field.attname), field.name
    assert (row.corrects_id, row.revision, row.note) == (None, 0, "")
    for one in record.legs:
        leg_row = row.legs.get(pk=one.leg_uuid)
        for field in RelayLeg._meta.concrete_fields:
            if field.name != "session":
                assert getattr(leg_row, field.attname) == getattr(one, field.attname), field.name


def test_a_session_is_in_the_table_from_its_begin_to_its_end(ledger: Ledger) -> None:
    steps = [
        live(legs=(leg(1, subject="anna", address="2001:db8::1", token_id="t1"),)),
        live(paired_at=START, legs=(leg(1), leg(2, role="server", account_id="acme"))),
        live(bytes_client_to_server=5, legs=(leg(1), leg(2, role="server", bytes_received=5))),
        ended(
            legs=(leg(1, left_at=START, close_code=1000, close_reason="bye \u00e9"), leg(2, left_at=START))
        ),
    ]
    for record in steps:
        ledger.record(record)
        assert ledger.flush(SOON)
        assert_row_equals(record)


def test_the_row_equals_the_line(ledger: Ledger, lines: list[str]) -> None:
    record = ended(timestamp=START + timedelta(microseconds=1_234_567), waiting_ms=12_345_678)
    ledger.record(record)
    assert ledger.flush(SOON)
    assert lines == [log_line(record)]
    row = {name: plain(value) for name, value in RelaySession.objects.values(*LINE_FIELDS).get().items()}
    assert json.loads(lines[0]) == {"event": "session_closed", **row}


def test_the_largest_numbers_and_strangest_texts_are_kept(ledger: Ledger) -> None:
    record = ended(
        account_id='\u00e9\U0001f600"\\u0000\\\0',
        bytes_client_to_server=2**62,
        bytes_server_to_client=2**62 - 1,
    )
    ledger.record(record)
    assert ledger.flush(SOON)
    assert_row_equals(record)


@pytest.mark.parametrize("written_between", [True, False])
def test_nothing_changes_or_reopens_a_closed_session(
    ledger: Ledger, lines: list[str], written_between: bool
) -> None:
    first = ended(legs=(leg(1, left_at=START, close_code=1000), leg(2)))
    ledger.record(first)
    if written_between:
        assert ledger.flush(SOON)
    ledger.record(live(bytes_client_to_server=1, legs=(leg(1, subject="mallory"),)))
    ledger.record(ended(reason="node_lost", bytes_client_to_server=1))
    assert ledger.flush(SOON)
    assert_row_equals(first)
    assert lines == [log_line(first)]


def test_a_leg_may_leave_after_its_session_has_closed(ledger: Ledger) -> None:
    ledger.record(ended(legs=(leg(1),)))
    assert ledger.flush(SOON)
    ledger.record(ended(legs=(leg(1, left_at=START, close_code=4410),)))
    assert ledger.flush(SOON)
    assert RelayLeg.objects.get().close_code == 4410


def test_of_nodes_that_close_a_session_at_the_same_moment_one_does_and_what_others_counted_beyond_is_added(
    database: Database, lines: list[str]
) -> None:
    nodes = [Ledger(batch_seconds=0) for _ in range(4)]
    go = threading.Barrier(len(nodes))

    def close_all(node: Ledger, number: int) -> None:
        go.wait()
        for session in range(100):
            node.record(
                ended(session, node=f"node-{number}", bytes_client_to_server=number, paired_ms=number)
            )
        assert node.close(SOON)

    in_threads(len(nodes), lambda number: close_all(nodes[number], number))
    for session in range(100):
        first = RelaySession.objects.get(session_uuid=uuid(session))  # it's of one node, not a mixture
        assert first.node == f"node-{first.bytes_client_to_server}"
        assert first.paired_seconds * 1000 == first.bytes_client_to_server
        counted = RelaySession.objects.filter(session_id=f"session-{session}")
        assert sum(row.bytes_client_to_server for row in counted) == len(nodes) - 1
        assert sum(row.bytes_server_to_client for row in counted) == 2000


@pytest.mark.parametrize(
    ("passed", "more"), [(1001, 0), (1000, 0), (1500, 499)], ids=["the same", "less", "more"]
)
def test_of_two_nodes_that_close_a_session_the_first_does_and_what_the_other_counted_beyond_is_added(
    ledger: Ledger, lines: list[str], caplog: pytest.LogCaptureFixture, passed: int, more: int
) -> None:
    """Both nodes of a session may close it, where one of them took the other for dead."""
    first, other = ended(), Ledger(batch_seconds=0, node="host-2")
    ledger.record(first)
    assert ledger.flush(SOON)
    later = first.timestamp + timedelta(milliseconds=500)
    late = replace(
        first,
        node="host-2",
        timestamp=later,
        reason="link_lost",
        paired_ms=700,
        bytes_client_to_server=passed,
        bytes_server_to_client=0,
    )
    other.record(late)
    assert other.close(SOON)
    assert_row_equals(first)
    rest = list(RelaySession.objects.exclude(session_uuid=first.session_uuid))
    assert [(row.bytes_client_to_server, row.bytes_server_to_client, row.reason) for row in rest] == (
        [(more, 0, "link_lost")] if more else []
    )
    assert [json.loads(line)["bytes_client_to_server"] for line in lines] == (
        [1001, more] if more else [1001]
    )
    assert any("closed as peer_left by others" in record.message for record in caplog.records) == bool(more)


def test_who_closes_a_session_as_another_node_has_in_the_same_millisecond_prints_no_line(
    ledger: Ledger, lines: list[str]
) -> None:
    other = Ledger(batch_seconds=0, node="host-2")
    ledger.record(ended())
    assert ledger.flush(SOON)
    other.record(ended())
    assert other.close(SOON)
    assert lines == [log_line(ended())]


def test_a_session_is_safe_when_it_is_in_the_database(ledger: Ledger, writes: Writes) -> None:
    assert ledger.safe(uuid(1)).done(), "nothing is to be kept of it"
    writes.failure = OperationalError("away")
    ledger.record(ended())
    safe, cancelled = ledger.safe(uuid(1)), ledger.safe(uuid(1))
    wait_until(lambda: bool(ledger._failures))
    assert not safe.done()
    assert not ledger.safe(uuid(1)).done()
    assert ledger.safe(uuid(2)).done()
    cancelled.cancel()
    writes.failure = None
    safe.result(SOON)
    assert_row_equals(ended())


def test_writing_the_same_again_changes_nothing(database: Database) -> None:
    records = [ended(number, legs=(leg(number, left_at=START),)) for number in range(50)]
    for _ in range(2):
        rows.write(records, "default")
    assert RelaySession.objects.count() == RelayLeg.objects.count() == 50


def test_thousands_of_records_from_many_threads_are_exact_and_make_few_transactions(
    database: Database, writes: Writes, lines: list[str]
) -> None:
    ledger = Ledger(batch_seconds=0.02)
    threads, sessions = 8, 250

    def life(thread: int) -> None:
        for number in range(thread * sessions, (thread + 1) * sessions):
            ledger.record(live(number, legs=(leg(number),)))
            ledger.record(live(number, bytes_client_to_server=1))
            ledger.record(ended(number, legs=(leg(number, left_at=START),)))

    in_threads(threads, life)
    assert ledger.close(SOON)
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == threads * sessions
    assert RelayLeg.objects.filter(left_at__isnull=False).count() == threads * sessions
    assert sorted(lines) == sorted(log_line(ended(number)) for number in range(threads * sessions))
    assert len(writes.batches) < threads * sessions * 3 / 50


def test_records_share_a_transaction_when_they_come_close_together(
    database: Database, writes: Writes
) -> None:
    go_on = threading.Event()
    ledger = Ledger(batch_seconds=0.1, pause=lambda seconds: go_on.wait(SOON) and None)
    for number in range(500):
        ledger.record(live(number))
    go_on.set()
    assert ledger.close(SOON)
    assert writes.batches == [500]


def test_a_failing_database_loses_and_repeats_nothing_and_is_warned_of_once_a_minute(
    database: Database, writes: Writes, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    pauses: list[float] = []
    enough = threading.Event()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds
        if now[0] > 130:
            writes.failure = None
        if len(pauses) == 3:
            ledger.record(ended(1, legs=(leg(1, left_at=START),)))  # meanwhile, it goes on
            ledger.record(ended(2))
        if now[0] > 130:
            enough.set()

    ledger = Ledger(batch_seconds=0.25, clock=lambda: now[0], pause=pause)
    writes.failure = OperationalError("server closed the connection\nunexpectedly")
    with caplog.at_level(logging.INFO, "relay.ledger"):
        ledger.record(live(1, legs=(leg(1),)))
        assert enough.wait(SOON)
        assert ledger.close(SOON)
    assert pauses[:9] == [0.25, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    levels = [record.levelname for record in of_ledger(caplog)]
    assert levels == ["WARNING", "WARNING", "WARNING", "INFO"]  # at 0 s, 60 s, 120 s, and when it is back
    assert "server closed the connection)" in of_ledger(caplog)[0].getMessage()
    assert_row_equals(ended(1, legs=(leg(1, left_at=START),)))
    assert RelaySession.objects.count() == 2
    assert sorted(lines) == [log_line(ended(1)), log_line(ended(2))]


def test_the_line_is_printed_while_the_database_is_away(
    database: Database, writes: Writes, lines: list[str]
) -> None:
    writes.failure = OperationalError("away")
    ledger = Ledger(batch_seconds=0)
    ledger.record(ended())
    assert not ledger.flush(0.5)
    assert lines == [log_line(ended())]
    assert ledger.unwritten == 1
    writes.failure = None
    assert ledger.close(SOON)
    assert only_row().session_id == "session-1"


def test_a_record_that_cannot_be_stored_stands_in_nobodys_way(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    ledger = Ledger(batch_seconds=0.1, pause=lambda seconds: go_on.wait(SOON) and None)
    for record in (ended(1), ended(2, bytes_client_to_server=2**80), ended(3)):
        ledger.record(record)
    go_on.set()
    assert ledger.close(SOON)
    assert [row.session_id for row in RelaySession.objects.order_by("session_id")] == [
        "session-1",
        "session-3",
    ]
    [error] = of_ledger(caplog)
    assert error.levelname == "ERROR"
    assert "session-2" in error.getMessage()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_sqlite_file_that_someone_locks_is_waited_for(database: Database) -> None:
    ledger = Ledger(batch_seconds=0)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN EXCLUSIVE")
        ledger.record(ended())
        assert not ledger.flush(0.2)
        cursor.execute("ROLLBACK")
    assert ledger.close(SOON)
    assert only_row().reason == "peer_left"


def test_close_reports_what_it_could_not_write_and_a_later_record_starts_again(
    database: Database, writes: Writes, caplog: pytest.LogCaptureFixture
) -> None:
    writes.failure = OperationalError("away")
    ledger = Ledger(batch_seconds=0)
    ledger.record(live(1))
    ledger.record(live(2))
    assert not ledger.close(0.3)
    error = of_ledger(caplog)[-1]
    assert error.levelname == "ERROR"
    assert "2 usage records" in error.getMessage()
    writes.failure = None
    ledger.record(live(3))
    assert ledger.close(SOON)
    assert RelaySession.objects.count() == 3


def test_close_ends_the_threads_and_their_connections(ledger: Ledger) -> None:
    before = {thread.name for thread in threading.enumerate()}
    ledger.record(ended())
    assert ledger.close(SOON)
    wait_until(lambda: {thread.name for thread in threading.enumerate()} <= before)


def test_flush_and_close_of_an_unused_ledger_return_at_once(database: Database) -> None:
    ledger = Ledger()
    assert ledger.flush(0)
    assert ledger.close(0)


def test_sessions_remembered_as_printed_are_bounded(lines: list[str]) -> None:
    from relay.ledger.writing.lines import LinePrinter

    printer = LinePrinter()
    for number in range(REMEMBERED + 10):
        printer.put(ended(number))
    assert printer.close(SOON)
    assert len(printer._printed) == REMEMBERED
    assert len(lines) == REMEMBERED + 10


def test_a_process_that_just_exits_has_written_everything(database: Database) -> None:
    code = (
        "import django; django.setup()\n"
        "from relay.ledger import Ledger\n"
        "from tests.usage.samples import ended, live\n"
        "ledger = Ledger(batch_seconds=10)\n"
        "for number in range(200): ledger.record(ended(number))\n"
    )
    environ = {**os.environ, "DATABASE_URL": database.url, "DJANGO_SETTINGS_MODULE": "lemcloud.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == 200
    assert sorted(done.stdout.splitlines()) == sorted(log_line(ended(number)) for number in range(200))


def test_a_process_that_exits_without_its_database_says_what_is_missing(database: Database) -> None:
    code = (
        "import django; django.setup()\n"
        "from relay.ledger import Ledger\n"
        "from tests.usage.samples import ended\n"
        "ledger = Ledger(exit_seconds=0.3)\n"
        "ledger.record(ended(1)); ledger.record(ended(2))\n"
    )
    away = "sqlite:////nowhere/at/all" if database.vendor == "sqlite" else "postgres://x@127.0.0.1:1/x"
    environ = {**os.environ, "DATABASE_URL": away, "DJANGO_SETTINGS_MODULE": "lemcloud.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    warning, error = done.stderr.splitlines()
    assert "WARNING relay.ledger" in warning
    assert "2 usage records not written" in error


@pytest.fixture
def own_postgres(postgres: Postgres, django_db_blocker: Any) -> Iterator[Postgres]:
    """The server, and a database that nobody else has a connection to."""
    name = f"own_{next(numbers)}"
    with django_db_blocker.unblock(), as_default(postgres.create(name)):
        call_command("migrate", verbosity=0)
        yield postgres


def test_a_postgresql_that_is_stopped_and_started_again_has_every_session_once(
    own_postgres: Postgres, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(batch_seconds=0)
    ledger.record(live(0))
    assert ledger.flush(SOON)
    connections["default"].close()
    own_postgres.stop()
    try:
        for number in range(300):
            ledger.record(live(number))
            ledger.record(ended(number))
        assert not ledger.flush(0.3)
        assert len(lines) == 300
    finally:
        own_postgres.start()
    assert ledger.close(SOON)
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == 300
    assert [record.levelname for record in of_ledger(caplog)] == ["WARNING", "INFO"]


def test_a_postgresql_that_hangs_holds_up_neither_recording_nor_lines(
    own_postgres: Postgres, lines: list[str]
) -> None:
    ledger = Ledger(batch_seconds=0)
    ledger.record(live(0))
    assert ledger.flush(SOON)
    own_postgres.pause()
    try:
        for number in range(300):
            ledger.record(ended(number))
        assert not ledger.flush(0.3)
        assert len(lines) == 300
    finally:
        own_postgres.resume()
    assert ledger.close(SOON)
    assert RelaySession.objects.filter(timestamp__isnull=False).count() == 300


def of_ledger(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "relay.ledger"]


def in_threads(number_of: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - shown by the test that waits
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(number_of)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def wait_until(condition: Callable[[], bool]) -> None:
    poll = threading.Event()
    for _ in range(int(SOON / 0.01)):
        if condition():
            return
        poll.wait(0.01)
    raise AssertionError("it did not come true")


def test_replace_keeps_a_record_fit() -> None:
    assert replace(ended(), account_id="a\0").account_id == "a\ufffd"
