"""The writer step by step: the test is its thread, and moves its clock."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import DataError, OperationalError, connections

from relay.ledger import Ledger, log_line
from relay.ledger.writing import nodes, replay, rows, settling, writer
from relay.ledger.writing.lines import LinePrinter
from relay.ledger.writing.spool import Entry, Spool
from relay.models import RelayLeg, RelayNode, RelaySession
from tests.databases import Database
from tests.usage.samples import START, ended, leg, live, uuid
from tests.usage.test_ledger import Writes, assert_row_equals, lines, of_ledger, wait_until, writes
from tests.usage.test_ledger_model import Steps
from tests.usage.test_spool import on_disk

__all__ = ["lines", "writes"]

SOON = 20.0

US = "us:1:1"

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class Clock:
    """A ledger whose writer takes a step when it's told to, by a clock that the test moves."""

    def __init__(self, folder: Path | None = None, node: str = "") -> None:
        self.now = 1000.0
        self.ledger = Steps(node=node, batch_seconds=0, spool_dir=folder, clock=lambda: self.now)

    def step(self, *records: Any, seconds: float = 11) -> None:
        """So much later, `records` come and the writer takes a step."""
        self.now += seconds
        for record in records:
            self.ledger.record(record)
        self.ledger._step()
        assert self.ledger._lines.flush(SOON)


@pytest.mark.parametrize("spool", ["none", "full"])
def test_a_newer_state_wins_over_the_one_that_failed_to_be_written_before_it(
    database: Database, writes: Writes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool: str
) -> None:
    """What failed waits in memory where no spool takes it."""
    monkeypatch.setattr(Spool, "append", lambda *_: set())
    clock = Clock(tmp_path if spool == "full" else None)
    writes.failure = OperationalError("away")
    clock.step(live(1, bytes_client_to_server=1, legs=(leg(1),)))
    clock.step(live(1, bytes_client_to_server=2, legs=(leg(1), leg(2, role="server"))))
    writes.failure = None
    newest = live(1, bytes_client_to_server=3, legs=(leg(1, bytes_received=7), leg(2, role="server")))
    clock.step(newest)
    assert_row_equals(newest)


def test_what_ended_in_a_state_that_failed_to_be_written_is_written_with_the_newer_one(
    database: Database, writes: Writes
) -> None:
    clock = Clock()
    writes.failure = OperationalError("away")
    clock.step(live(1, legs=(leg(1, left_at=START, close_code=1001),)))
    writes.failure = None
    clock.step(live(1, bytes_client_to_server=3, legs=(leg(2),)))
    assert_row_equals(
        live(1, bytes_client_to_server=3, legs=(leg(1, left_at=START, close_code=1001), leg(2)))
    )


def test_a_day_long_outage_is_still_tried_every_few_seconds(database: Database, writes: Writes) -> None:
    clock = Clock()
    clock.ledger._failures = 20_000
    writes.failure = OperationalError("away")
    clock.step(ended(1))
    assert clock.ledger._retry_at == clock.now + writer.LONGEST_RETRY_SECONDS
    writes.failure = None
    clock.step(seconds=writer.LONGEST_RETRY_SECONDS)
    assert_row_equals(ended(1))


def test_a_connection_is_kept_for_many_batches_and_for_a_minute(database: Database) -> None:
    """Long enough that opening one costs nothing, short enough that a database that has moved is followed."""
    clock = Clock()
    made = []
    for number in range(7):
        clock.step(live(number), seconds=20)
        made.append(connections["default"].connection)
    assert len({id(connection) for connection in made[:4]}) == 1
    assert made[4] is made[5] is made[6]
    assert made[4] is not made[0]


def test_a_node_has_left_a_heartbeat_before_its_first_record(database: Database, writes: Writes) -> None:
    """Others would close a session of a node that has none."""
    seen: list[int] = []
    original = writes.original

    def write(records: Any, using: str) -> Any:
        seen.append(RelayNode.objects.filter(node=US).count())
        return original(records, using)

    writes.original = write
    Clock(node=US).step(live(1, node=US))
    assert seen == [1]


def test_a_node_beats_at_each_checkpoint_though_nothing_happens(database: Database) -> None:
    clock = Clock(node=US)
    clock.step()
    RelayNode.objects.update(beat_at=START)
    clock.step(seconds=9)
    assert RelayNode.objects.get().beat_at == START
    clock.step(seconds=1)
    assert RelayNode.objects.get().beat_at > START


def test_a_node_beats_while_it_replays_a_large_spool(
    database: Database, writes: Writes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 1)
    clock = Clock(tmp_path, node=US)
    writes.failure = OperationalError("away")
    clock.step(live(1, node=US), live(2, node=US), live(3, node=US))
    writes.failure = None
    beats: list[bool] = []
    original = writes.original

    def write_slowly(records: Any, using: str) -> Any:
        beats.append(RelayNode.objects.get().beat_at > START)
        RelayNode.objects.update(beat_at=START)
        clock.now += 11
        return original(records, using)

    writes.original = write_slowly
    clock.step()
    assert beats == [True] * 3


def test_what_has_ended_is_forgotten_in_memory(database: Database, writes: Writes, tmp_path: Path) -> None:
    """A process has as many sessions in a month as the database has rows."""
    clock = Clock(tmp_path, node=US)
    clock.step(live(1, node=US), live(2, node=US), live(3, node=US))
    rows.write([ended(3, node="other", timestamp=START)], "default")
    writes.failure = OperationalError("away")
    clock.step(ended(1, node=US))
    writes.failure = None
    clock.step(ended(2, node=US))
    clock.step(ended(3, node=US))  # which another node has ended, at another moment
    ledger = clock.ledger
    assert (ledger._known, ledger._lines_due, ledger._waiting, ledger._batch) == (set(), set(), {}, {})


def test_the_line_of_a_session_that_others_may_close_waits_for_its_row_unless_nothing_else_would_be_left(
    database: Database, writes: Writes, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path, node=US)
    clock.step(live(1, node=US), live(2, node=US))
    writes.failure = OperationalError("away")
    clock.step(ended(1, node=US))
    assert lines == []
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", lambda *_: set())  # it is full
        clock.step(ended(2, node=US))
    assert lines == [log_line(ended(2, node=US))]
    writes.failure = None
    clock.step()
    assert sorted(lines) == sorted(log_line(ended(number, node=US)) for number in (1, 2))


def test_a_line_is_printed_when_its_row_is_there_and_once(
    database: Database, writes: Writes, lines: list[str], tmp_path: Path
) -> None:
    """Killed in between, another node would close the session with a line of its own."""
    original = writes.original
    before: list[list[str]] = []
    clock = Clock(tmp_path, node=US)

    def write(records: Any, using: str) -> Any:
        assert clock.ledger._lines.flush(SOON)
        before.append(list(lines))
        return original(records, using)

    writes.original = write
    clock.step(ended(1, node=US))
    assert before == [[]]
    assert lines == [log_line(ended(1, node=US))]


def test_a_session_that_ends_has_its_line_though_another_of_its_batch_had_ended_before(
    database: Database, lines: list[str], tmp_path: Path
) -> None:
    rows.write([live(1), live(2)], "default")
    rows.write([ended(1, node="other")], "default")
    spool = Spool(tmp_path, "dead:1:1", 10**6)
    spool.append([Entry(ended(number), line_due=True) for number in (1, 2)])
    spool.close()
    Clock(tmp_path, node=US).step()
    assert lines == [log_line(ended(2))]


def test_a_leg_that_dropped_without_a_close_code_stays_as_it_left(database: Database) -> None:
    left = leg(1, left_at=START, bytes_received=7)
    rows.write([live(1, legs=(left,))], "default")
    rows.write([live(1, legs=(leg(1, bytes_received=9),))], "default")
    assert_row_equals(live(1, legs=(left,)))


def test_where_only_the_answer_to_a_write_got_lost_its_line_is_printed(
    database: Database, writes: Writes, lines: list[str], tmp_path: Path
) -> None:
    clock = Clock(tmp_path, node=US)
    clock.step(live(1, node=US))
    original = writes.original

    def write_and_fail(records: Any, using: str) -> Any:
        original(records, using)
        raise OperationalError("the connection is lost")

    writes.original = write_and_fail
    clock.step(ended(1, node=US))
    assert lines == []
    writes.original = original
    clock.step()
    clock.step()
    assert lines == [log_line(ended(1, node=US))]


def test_a_spool_that_is_replayed_twice_prints_its_lines_once(
    database: Database, lines: list[str], tmp_path: Path
) -> None:
    """The file stays where a process is killed between the rows and its removal."""
    spool = Spool(tmp_path, "dead:1:1", 10**6)
    spool.append([Entry(ended(1), line_due=True)])
    spool.close()
    content = spool.path.read_bytes()
    for _ in range(2):
        spool.path.write_bytes(content)
        Clock(tmp_path, node=US).step()
        assert not spool.path.exists()
    assert lines == [log_line(ended(1))]


def test_all_lines_of_a_spool_are_printed_though_one_of_its_records_cannot_be_stored(
    database: Database, lines: list[str], tmp_path: Path
) -> None:
    """Its rows are then written one by one, and each of them may have ended before."""
    rows.write([ended(1), ended(3)], "default")
    spool = Spool(tmp_path, "dead:1:1", 10**6)
    too_large = ended(2, bytes_client_to_server=2**80)
    spool.append([Entry(record, line_due=True) for record in (ended(1), too_large, ended(3), ended(4))])
    spool.close()
    Clock(tmp_path, node=US).step()
    assert log_line(ended(4)) in lines
    assert not {log_line(ended(1)), log_line(ended(3))} & set(lines)


def test_at_its_end_a_process_whose_writer_hangs_puts_what_it_has_into_a_spool_of_its_own(
    database: Database, writes: Writes, lines: list[str], tmp_path: Path
) -> None:
    hangs, go_on = threading.Event(), threading.Event()

    def write(records: Any, using: str) -> Any:
        hangs.set()
        go_on.wait(SOON)
        raise OperationalError("away")

    ledger = Ledger(batch_seconds=0, spool_dir=tmp_path)
    writes.original = write
    ledger.record(live(1))
    assert hangs.wait(SOON)
    ledger.record(ended(2))
    try:
        assert not ledger.close(0.1)
        assert {record.session_id for record in on_disk(tmp_path)} == {"session-1", "session-2"}
        assert ledger.unwritten == 0
        wait_until(lambda: lines == [log_line(ended(2))])
    finally:
        go_on.set()
        wait_until(lambda: ledger._thread is None)
        if ledger._spool is not None:
            ledger._spool.close()


def test_a_node_does_not_settle_itself_for_a_spool_that_it_left_behind(
    database: Database, tmp_path: Path
) -> None:
    """As it does when its writer hung at what was to be its end, and it went on after all."""
    spool = Spool(tmp_path, US, 10**6)
    spool.append([Entry(live(2, node=US))])
    spool.close()
    clock = Clock(tmp_path, node=US)
    clock.step(live(1, node=US))
    clock.step()
    assert set(RelaySession.objects.values_list("reason", flat=True)) == {""}


def test_flush_waits_for_the_lines_too(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    printing, go_on = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printing.set()
            go_on.wait(SOON)

    monkeypatch.setattr(logging.getLogger("relay.usage"), "handlers", [Slow()])
    ledger = Ledger(batch_seconds=0)
    ledger.record(ended(1))
    assert printing.wait(SOON)
    wait_until(lambda: ledger._written == 1)
    assert not ledger.flush(0.05)
    go_on.set()
    assert ledger.close(SOON)


def test_another_node_adds_its_legs_and_leaves_the_session_to_its_owner(database: Database) -> None:
    rows.write([live(1, bytes_client_to_server=5, node="owner", legs=(leg(1),))], "default")
    other = live(1, bytes_client_to_server=3, node="other", owned=False, legs=(leg(2, role="server"),))
    assert rows.write([other], "default") == set()
    row = RelaySession.objects.get()
    assert (row.bytes_client_to_server, row.node) == (5, "owner")
    assert RelayLeg.objects.filter(session=row).count() == 2
    ahead = live(2, owned=False, legs=(leg(3),))  # it may come first, so that its leg has a session
    rows.write([ahead], "default")
    rows.write([live(2, bytes_client_to_server=9)], "default")
    assert RelaySession.objects.get(pk=uuid(2)).bytes_client_to_server == 9


@pytest.mark.parametrize(
    ("node", "dead"),
    [
        ("host:{pid}:1", True),  # an earlier process had the id of this one
        ("host:1:1", False),  # it exists, and is somebody else's
        ("a name without numbers", False),
        ("host:x:1", False),
    ],
    ids=["this one's id", "another user's", "no id", "no number"],
)
def test_a_process_is_taken_for_dead_only_where_that_is_certain(
    database: Database, monkeypatch: pytest.MonkeyPatch, node: str, dead: bool
) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(nodes.os, "kill", kill)
    node = node.format(pid=nodes.os.getpid())
    nodes.beat(node, "here", "default")
    assert nodes.gone_from("here", "default") == [node] * dead
    assert nodes.gone_from("elsewhere", "default") == []
    assert nodes.gone_from("", "default") == []


def test_settling_by_hand_waits_for_nobody_when_nothing_is_left(database: Database) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError("it waits")

    rows.write([ended(1, legs=(leg(1, left_at=START),))], "default")
    assert settling.settle(None, 60, wait) == settling.Done()


def test_settling_by_hand_closes_a_leg_that_is_left_of_an_ended_session(database: Database) -> None:
    rows.write([ended(1, legs=(leg(1, node="dead:1:1"),))], "default")
    waited: list[float] = []
    settling.settle(None, 60, waited.append)
    assert waited == [60]
    assert RelayLeg.objects.get().left_at is not None


def test_settling_by_hand_ends_when_its_lines_are_printed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends then, and the lines' thread with it."""
    order: list[str] = []
    close: Callable[..., bool] = LinePrinter.close
    monkeypatch.setattr(LinePrinter, "close", lambda *args: order.append("closed") or close(*args))
    rows.write([live(1, node="dead:1:1")], "default")
    assert settling.settle(None, 0, lambda _: None).closed == 1
    assert order == ["closed"]


def test_an_error_of_the_record_is_told_from_one_of_the_database(
    database: Database, writes: Writes, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is reported and left out at once, as no later attempt would succeed."""
    clock = Clock()
    writes.failure = DataError("out of range\nDETAIL: a column")
    clock.step(ended(1))
    writes.failure = None
    clock.step()
    assert not RelaySession.objects.exists()
    [error] = of_ledger(caplog)
    assert "left out (out of range): " in error.getMessage()
    assert "session-1" in error.getMessage()


def test_all_sessions_of_a_dead_node_are_closed_however_many_it_had(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few in each transaction, so that no lock is held for long."""
    monkeypatch.setattr(nodes, "SESSIONS_AT_ONCE", 2)
    rows.write([live(number, node="dead:1:1") for number in range(5)], "default")
    assert [len(closed) for closed in nodes.settle("default", lost_seconds=60)] == [2, 2, 1]
    assert set(RelaySession.objects.values_list("reason", flat=True)) == {"node_lost"}
