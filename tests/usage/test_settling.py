"""What a dead node left open is closed, once, by whoever is there; what a living one has is left alone."""

import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from relay import conf
from relay.ledger import Ledger, log_line
from relay.ledger.writing import nodes, rows
from relay.ledger.writing.spool import Entry, Spool
from relay.models import RelayLeg, RelayNode, RelaySession
from tests.databases import Database
from tests.usage.samples import START, ended, leg, live
from tests.usage.test_ledger import Writes, assert_row_equals, in_threads, lines, of_ledger, writes

__all__ = ["lines", "writes"]

SOON = 20.0

US, DEAD, ALIVE = "us:1:1", "dead:1:1", "alive:1:1"

LOST_SECONDS = 60
"""The default."""


def beat(node: str, seconds_ago: float = 0, place: str = "") -> None:
    """`node` has left a heartbeat."""
    at = nodes.now("default") - timedelta(seconds=seconds_ago)
    RelayNode.objects.update_or_create(node=node, defaults={"place": place, "beat_at": at})


def left_open(number: int, node: str = DEAD, **fields: Any) -> None:
    """A live session of `node` with a leg of its own is in the tables."""
    rows.write([live(number, node=node, legs=(leg(number, node=node),), **fields)], "default")


def reasons() -> dict[str, str]:
    return dict(RelaySession.objects.values_list("session_id", "reason"))


def settle() -> list[str]:
    closed = chain.from_iterable(nodes.settle("default", lost_seconds=LOST_SECONDS))
    return [record.session_id for record in closed]


def settle_usage(*arguments: str) -> str:
    """What the command says."""
    said = StringIO()
    call_command("settle_usage", *arguments, stderr=said)
    return said.getvalue().strip()


class Clock:
    """A monotonic clock that a test moves, and a ledger of `US` that goes by it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.now = 1000.0
        self.ledger = Ledger(node=US, batch_seconds=0, clock=lambda: self.now, spool_dir=folder)
        self._number = 10_000

    def go_on(self, seconds: float) -> None:
        """The ledger writes once, after so many seconds."""
        self.now += seconds
        self._number += 1
        self.ledger.record(live(self._number, node=US))
        assert self.ledger.flush(SOON)


@pytest.fixture
def clock(database: Database) -> Any:
    made = Clock()
    yield made
    made.ledger.close(SOON)


def test_a_lost_nodes_sessions_and_legs_are_closed_with_what_the_rows_hold(database: Database) -> None:
    beat(DEAD, LOST_SECONDS + 1)
    left_open(1, bytes_client_to_server=7, waiting_ms=123, paired_ms=456, account_id="acme", paired_at=START)
    before = nodes.now("default")
    [[record]] = nodes.settle("default", lost_seconds=LOST_SECONDS)
    row = RelaySession.objects.get()
    assert row.reason == "node_lost"
    assert before <= row.timestamp <= nodes.now("default")
    assert (row.total_bytes, row.duration_seconds, row.account_id) == (7, 0.579, "acme")
    assert_row_equals(record)
    assert RelayLeg.objects.get().left_at >= before


def test_a_node_without_a_heartbeat_is_as_lost_as_one_with_an_old_one(database: Database) -> None:
    left_open(1)
    assert settle() == ["session-1"]


def test_what_is_closed_or_of_a_living_node_is_left_alone(database: Database) -> None:
    beat(ALIVE, LOST_SECONDS - 10)
    left_open(1, ALIVE)
    rows.write([ended(2, node=DEAD)], "default")
    assert settle() == []
    assert reasons() == {"session-1": "", "session-2": "peer_left"}
    assert RelayLeg.objects.get().left_at is None


def test_the_leg_of_a_dead_node_is_closed_though_its_session_is_of_a_living_one(database: Database) -> None:
    beat(ALIVE)
    rows.write([live(1, node=ALIVE, legs=(leg(1, node=ALIVE), leg(2, node=DEAD, role="server")))], "default")
    assert settle() == []
    assert [row.left_at is None for row in RelayLeg.objects.order_by("leg_uuid")] == [True, False]


def test_lost_nodes_are_forgotten_once_nothing_is_left_of_them(database: Database) -> None:
    beat(DEAD, LOST_SECONDS + 1)
    beat(ALIVE)
    settle()
    assert [node.node for node in RelayNode.objects.all()] == [ALIVE]


def test_two_settlers_at_once_make_one_close_of_each_session(database: Database) -> None:
    beat(DEAD, LOST_SECONDS + 1)
    rows.write([live(number, node=DEAD) for number in range(2500)], "default")
    go, settled = threading.Barrier(4), []

    def one(_: int) -> None:
        go.wait()
        settled.extend(settle())

    in_threads(4, one)
    assert sorted(settled) == sorted(f"session-{number}" for number in range(2500))
    assert set(reasons().values()) == {"node_lost"}


def test_a_close_at_the_same_moment_as_a_settlement_is_one_of_the_two(database: Database) -> None:
    beat(DEAD, LOST_SECONDS + 1)
    records = [ended(number, node=DEAD) for number in range(1000)]
    rows.write([live(number, node=DEAD) for number in range(1000)], "default")
    go, settled = threading.Barrier(2), []

    def one(thread: int) -> None:
        go.wait()
        if thread:
            settled.extend(settle())
            settled.extend(settle())  # what was just being written the first time
        else:
            for start in range(0, 1000, 50):
                rows.write(records[start : start + 50], "default")

    in_threads(2, one)
    found = reasons()
    assert {name for name, reason in found.items() if reason == "node_lost"} == set(settled)
    assert set(found.values()) <= {"node_lost", "peer_left"}


def test_a_node_settles_when_it_has_been_there_for_as_long_as_another_may_be_silent(
    clock: Clock, lines: list[str]
) -> None:
    left_open(1)
    for _ in range(6):
        clock.go_on(10)
        assert reasons()["session-1"] == ""
    clock.go_on(10)
    clock.go_on(10)
    assert reasons()["session-1"] == "node_lost"
    assert clock.ledger.flush(SOON)
    assert len(lines) == 1
    assert '"session-1"' in lines[0]
    assert '"node_lost"' in lines[0]


def test_after_an_outage_nobody_is_settled_until_all_had_time_to_come_back(clock: Clock) -> None:
    for _ in range(8):
        clock.go_on(10)
    beat(DEAD, LOST_SECONDS + 1)
    left_open(1)
    clock.go_on(LOST_SECONDS + 1)
    for _ in range(6):
        assert reasons()["session-1"] == ""
        clock.go_on(10)
    clock.go_on(10)
    assert reasons()["session-1"] == "node_lost"


def test_who_loses_the_database_while_it_settles_has_printed_what_it_had_settled(
    clock: Clock, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"host:{dead_process()}:1"
    beat(gone, place=nodes.this_place())
    for number in (1, 2, 3):
        left_open(number, gone)
    monkeypatch.setattr(nodes, "SESSIONS_AT_ONCE", 2)
    close_rows = nodes._close_rows

    def fail_once(using: str, uuids: list[Any]) -> Any:
        monkeypatch.setattr(nodes, "_close_rows", fail)
        return close_rows(using, uuids)

    def fail(using: str, uuids: list[Any]) -> Any:
        monkeypatch.setattr(nodes, "_close_rows", close_rows)
        raise OperationalError("away")

    monkeypatch.setattr(nodes, "_close_rows", fail_once)
    clock.go_on(0)
    clock.go_on(11)
    assert list(reasons().values()).count("node_lost") == 3
    assert clock.ledger.flush(SOON)
    assert len(lines) == 3


def dead_process() -> int:
    """A process id that nobody has."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_node_of_this_host_whose_process_is_gone_is_dead_at_once(clock: Clock, lines: list[str]) -> None:
    gone, here = f"host:{dead_process()}:1", f"host:{os.getppid()}:1"
    elsewhere = f"another:{dead_process()}:1"
    beat(gone, place=nodes.this_place())
    beat(here, place=nodes.this_place())
    beat(elsewhere, place="another")
    left_open(1, gone)
    left_open(2, here)
    left_open(3, elsewhere)
    clock.go_on(0)
    assert reasons() == {"session-1": "node_lost", "session-2": "", "session-3": "", "session-10001": ""}
    assert clock.ledger.flush(SOON)
    assert len(lines) == 1


@pytest.mark.parametrize("left", [True, False])
def test_a_session_with_a_leg_on_a_living_node_is_left_to_that_one_at_first(clock: Clock, left: bool) -> None:
    gone = f"host:{dead_process()}:1"
    beat(gone, place=nodes.this_place())
    beat(ALIVE)
    there = leg(12, node=ALIVE, role="server", left_at=START if left else None)
    rows.write([live(1, node=gone, legs=(leg(11, node=gone), there))], "default")
    left_open(2, gone)
    for _ in range(10):
        clock.go_on(10)
    assert (reasons()["session-1"], reasons()["session-2"]) == ("", "node_lost")
    assert not RelayLeg.objects.filter(node=gone, left_at__isnull=True).exists()
    beat(gone, LOST_SECONDS + 1)
    clock.go_on(10)
    assert reasons()["session-1"] == "node_lost"


def test_what_is_in_a_dead_processs_spool_counts_before_it_is_settled(
    database: Database, tmp_path: Path, lines: list[str]
) -> None:
    gone = f"host:{dead_process()}:1"
    beat(gone, place=nodes.this_place())
    left_open(1, gone)
    left_open(2, gone)
    spool = Spool(tmp_path, gone, 10**6)
    spool.append([Entry(ended(1, node=gone)), Entry(live(2, node=gone, bytes_client_to_server=50))])
    spool.close()
    clock = Clock(tmp_path)
    clock.go_on(0)
    assert_row_equals(ended(1, node=gone))
    row = RelaySession.objects.get(session_id="session-2")
    assert (row.reason, row.bytes_client_to_server) == ("node_lost", 50)
    assert clock.ledger.close(SOON)
    assert len(lines) == 1


def test_a_node_that_ends_in_order_leaves_no_heartbeat(clock: Clock) -> None:
    clock.go_on(0)
    assert RelayNode.objects.get().node == US
    assert clock.ledger.close(SOON)
    assert not RelayNode.objects.exists()
    clock.go_on(1)
    assert RelayNode.objects.get().node == US


def settled_meanwhile(number: int) -> None:
    """Another node has closed the session of `US`, with what the row holds."""
    RelayNode.objects.filter(node=US).delete()
    assert f"session-{number}" in settle()


@pytest.mark.parametrize("when", ["while it is cut off", "when it is back"])
@pytest.mark.parametrize("cut_off_seconds", [1, LOST_SECONDS + 1])
def test_what_a_session_came_to_after_others_had_closed_it_is_a_record_of_its_own(
    database: Database,
    writes: Writes,
    lines: list[str],
    tmp_path: Path,
    when: str,
    cut_off_seconds: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock(tmp_path)
    clock.ledger.record(live(1, node=US, bytes_client_to_server=400, frames_client_to_server=1, paired_ms=50))
    clock.go_on(0)
    writes.failure = OperationalError("cut off")
    clock.now += cut_off_seconds
    record = ended(1, node=US, bytes_client_to_server=999, legs=(leg(1, left_at=START),))
    new = ended(2, node=US)
    if when == "while it is cut off":
        clock.ledger.record(record)
        clock.ledger.record(new)
        assert not clock.ledger.flush(0.3)
        assert lines == [log_line(new)]  # the other one may be closed by others
    writes.failure = None
    settled_meanwhile(1)
    clock.go_on(LOST_SECONDS)
    if when != "while it is cut off":
        clock.ledger.record(record)
        clock.ledger.record(new)
    assert clock.ledger.close(SOON)
    first, rest = RelaySession.objects.filter(session_id="session-1").order_by("paired_seconds")
    assert (first.reason, first.bytes_client_to_server, first.frames_client_to_server) == (
        "node_lost",
        400,
        1,
    )
    assert (rest.reason, rest.timestamp, rest.account_id) == ("peer_left", record.timestamp, "acme")
    assert (rest.bytes_client_to_server, rest.frames_client_to_server) == (599, 2)
    assert (rest.bytes_server_to_client, rest.paired_seconds) == (2000, 0.15)
    assert_row_equals(new)
    printed = {line["session_uuid"]: line for line in map(json.loads, lines)}
    assert printed.keys() == {str(new.session_uuid), str(rest.session_uuid)}
    assert len(lines) == 2
    assert printed[str(rest.session_uuid)]["bytes_client_to_server"] == 599
    assert any(str(rest.session_uuid) in record.getMessage() for record in of_ledger(caplog))


def test_a_session_that_goes_on_after_others_have_closed_it_is_still_checkpointed(
    clock: Clock, lines: list[str]
) -> None:
    for nbytes, rows_after in ((100, [100]), (100, [100]), (250, [100, 150]), (300, [100, 200])):
        record = live(1, node=US, bytes_client_to_server=nbytes)
        clock.ledger.record(record)
        clock.go_on(1)
        counted = RelaySession.objects.filter(session_id="session-1").values_list("total_bytes", flat=True)
        assert sorted(counted) == rows_after
        if nbytes == 100 and not RelaySession.objects.filter(reason="node_lost").exists():
            settled_meanwhile(1)
    settled_meanwhile(1)  # once more
    end = ended(1, node=US, bytes_client_to_server=1000, bytes_server_to_client=0)
    for _ in range(2):
        clock.ledger.record(end)
        assert clock.ledger.flush(SOON)
    found = RelaySession.objects.filter(session_id="session-1").order_by("total_bytes")
    assert [(row.total_bytes, row.reason) for row in found] == [
        (100, "node_lost"),
        (200, "node_lost"),
        (700, "peer_left"),
    ]
    assert clock.ledger.close(SOON)
    assert len(lines) == 1  # those of the settled ones are printed by who settled


def test_a_dead_nodes_spool_counts_though_its_sessions_were_settled_before_it_was_found(
    database: Database, tmp_path: Path, lines: list[str]
) -> None:
    left_open(1, bytes_client_to_server=10)
    left_open(2, bytes_client_to_server=10)
    left_open(3, bytes_client_to_server=10)
    assert len(settle()) == 3
    spool = Spool(tmp_path, DEAD, 10**6)
    spool.append([Entry(ended(1, node=DEAD), line_due=True)])
    spool.append([Entry(live(2, node=DEAD, bytes_client_to_server=50))])
    spool.append([Entry(live(3, node=DEAD, bytes_client_to_server=10))])
    spool.close()
    content = spool.path.read_bytes()
    for _ in range(2):
        spool.path.write_bytes(content)
        clock = Clock(tmp_path)
        clock.go_on(0)
        assert clock.ledger.close(SOON)
    sums = {
        name: sum(
            RelaySession.objects.filter(session_id=name).values_list("bytes_client_to_server", flat=True)
        )
        for name in ("session-1", "session-2", "session-3")
    }
    assert sums == {"session-1": 1001, "session-2": 50, "session-3": 10}
    assert not RelaySession.objects.filter(timestamp=None, node=DEAD).exists()
    printed = [json.loads(line)["session_uuid"] for line in lines]
    assert len(printed) == len(set(printed)) == 2


def test_a_line_that_waits_while_its_node_is_cut_off_is_printed_by_who_replays_the_spool(
    database: Database, writes: Writes, lines: list[str], tmp_path: Path
) -> None:
    clock = Clock(tmp_path)
    clock.ledger.record(live(1, node=US))
    clock.go_on(0)
    writes.failure = OperationalError("cut off")
    clock.now += LOST_SECONDS + 1
    clock.ledger.record(ended(1, node=US))
    assert not clock.ledger.close(0.5)
    assert lines == []
    clock.ledger._spool.close()  # its process has ended
    writes.failure = None
    another = Clock(tmp_path)
    another.go_on(0)
    assert another.ledger.close(SOON)
    assert lines == [log_line(ended(1, node=US))]
    assert_row_equals(ended(1, node=US))


@pytest.fixture
def spool_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that the settings name."""
    changed = conf.current().model_copy(update={"spool_dir": str(tmp_path)})
    monkeypatch.setattr(conf, "current", lambda: changed)
    return tmp_path


def test_settle_usage_replays_and_closes_what_is_nobodys_and_says_so(
    database: Database, spool_dir: Path, lines: list[str]
) -> None:
    beat(DEAD, LOST_SECONDS + 1)
    left_open(1)
    left_open(2)
    spool = Spool(spool_dir, DEAD, 10**6)
    spool.append([Entry(ended(1, node=DEAD)), Entry(ended(3), line_due=True)])
    spool.close()
    own = Spool(spool_dir, ALIVE, 10**6)
    own.append([Entry(live(4))])
    assert settle_usage("--wait", "0") == (
        "1 spools with 2 records written, 1 in use by running nodes; 1 sessions closed as node_lost"
    )
    assert reasons() == {"session-1": "peer_left", "session-2": "node_lost", "session-3": "peer_left"}
    assert [line.count('"session-3"') + line.count('"session-2"') for line in lines] == [1, 1]
    own.close()
    assert settle_usage("--wait", "0").startswith("1 spools with 1 records written, 0 in use")
    assert settle_usage() == (
        "0 spools with 0 records written, 0 in use by running nodes; 0 sessions closed as node_lost"
    )


def test_settle_usage_waits_for_nodes_that_were_cut_off_with_the_database(
    database: Database, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(DEAD, 1000)
    beat(ALIVE, 1000)
    left_open(1)
    left_open(2, ALIVE)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        beat(ALIVE)

    monkeypatch.setattr("time.sleep", wait)
    assert settle_usage().endswith("1 sessions closed as node_lost")
    assert waited == [LOST_SECONDS]
    assert reasons() == {"session-1": "node_lost", "session-2": ""}


def test_settle_usage_without_its_database_is_an_error_of_one_line(
    database: Database, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("server closed the connection\nunexpectedly")

    monkeypatch.setattr(nodes, "gone_from", fail)
    with pytest.raises(
        CommandError, match=r"^the database can't be written to: server closed the connection$"
    ):
        settle_usage()
