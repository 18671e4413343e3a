"""The ledger beside a model of what it has to remember: a crash may come between any two of its steps.

The test is the writer thread and the outside world: a record comes, the writer writes to a database that is
there or away, another node takes this one for dead, the process is killed, be it half-way through a step.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from django.db import OperationalError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)

from relay.ledger import Ledger, SessionRecord, log_line
from relay.ledger.records import LINE_FIELDS, plain
from relay.ledger.writing import nodes, rows
from relay.ledger.writing.spool import Spool
from relay.models import RelayLeg, RelayNode, RelaySession
from tests.databases import Database
from tests.usage.samples import START, leg, live


class Killed(BaseException):
    """The process is killed here."""


class Steps(Ledger):
    """A ledger whose writer thread is the test: it takes a step when it's told to."""

    def _start(self) -> None:
        self._stopping = self._giving_up = False


@dataclass
class Told:
    """What the ledger was told of a session by the process that had it."""

    newest: SessionRecord
    figures: set[int] = field(default_factory=lambda: {0})
    """All byte counts so far, however old."""
    safe: SessionRecord | None = None
    """What was in the database or the spool after a step: no crash may take it."""
    may_lack_a_line: bool = False
    """Killed in the midst of a step that had its end."""


class World(RuleBasedStateMachine):
    """One process after the other, with one spool folder; one database; and another node that settles."""

    def __init__(self) -> None:
        super().__init__()
        for table in (RelayLeg, RelaySession, RelayNode):
            table.objects.all().delete()
        self.folder = TemporaryDirectory()
        self.process = 0
        self.now = 1000.0
        self.lines: list[str] = []
        self.collect = Collect(self.lines)
        self.away = False
        self.steps_to_live: int | None = None
        self.sessions: dict[str, Told] = {}
        self.start()

    def start(self) -> None:
        """The next process."""
        self.process += 1
        self.node = f"host:{10_000_000 + self.process}:1"
        self.ledger = Steps(
            node=self.node, spool_dir=Path(self.folder.name), batch_seconds=0, clock=lambda: self.now
        )
        self.mine: list[str] = []

    # Where it may be killed

    def reach(self) -> None:
        """One of the moments in which nothing may be lost."""
        if self.steps_to_live is not None:
            self.steps_to_live -= 1
            if self.steps_to_live < 0:
                raise Killed

    def write_rows(self, write: Callable[..., set[Any]], records: Any, using: str) -> set[Any]:
        self.reach()
        if self.away:
            raise OperationalError("away")
        had_ended = write(records, using)
        self.reach()
        return had_ended

    def write_spool(self, write: Callable[..., None], spool: Spool, descriptor: int, data: bytes) -> None:
        try:
            self.reach()
        except Killed:
            write(spool, descriptor, data[: len(data) // 2])  # torn
            raise
        write(spool, descriptor, data)
        self.reach()

    def clear_spool(self, clear: Callable[..., None], spool: Spool) -> None:
        self.reach()
        clear(spool)
        self.reach()

    # What happens

    def _record(self, record: SessionRecord) -> None:
        self.ledger.record(record)
        told = self.sessions.setdefault(record.session_id, Told(record))
        told.newest = record
        told.figures.add(record.total_bytes)

    # Each rule can follow any other, and the writer may write at once: what takes five events in one order,
    # as a session that is closed too early and goes on, has to be met often.

    @rule(count=st.integers(1, 3), written=st.booleans())
    def sessions_begin(self, count: int, written: bool) -> None:
        for _ in range(count):
            number = len(self.sessions) + 1
            record = live(number, node=self.node, legs=(leg(number, node=self.node),))
            self.mine.append(record.session_id)
            self._record(record)
        if written:
            self.the_writer_writes()

    @rule(which=st.integers(0, 5), nbytes=st.integers(1, 1000), written=st.booleans())
    def one_goes_on(self, which: int, nbytes: int, written: bool) -> None:
        if not self.mine:
            self.sessions_begin(1, written)
        before = self.sessions[self.mine[which % len(self.mine)]].newest
        self._record(replace(before, bytes_client_to_server=before.bytes_client_to_server + nbytes))
        if written:
            self.the_writer_writes()

    @rule(which=st.integers(0, 5), nbytes=st.integers(0, 1000), written=st.booleans())
    def one_ends(self, which: int, nbytes: int, written: bool) -> None:
        if not self.mine:
            self.sessions_begin(1, written)
        before = self.sessions[self.mine.pop(which % len(self.mine))].newest
        legs = tuple(replace(one, left_at=START) for one in before.legs)
        end = START + timedelta(seconds=len(self.sessions))
        relayed = before.bytes_client_to_server + nbytes
        self._record(
            replace(before, timestamp=end, reason="peer_left", legs=legs, bytes_client_to_server=relayed)
        )
        if written:
            self.the_writer_writes()

    @rule()
    def the_writer_writes(self) -> None:
        self.ledger._step()
        assert self.ledger.unwritten == 0
        for told in self.sessions.values():
            if told.newest.node == self.node:
                told.safe = told.newest
        if not self.ledger._failures:
            assert not self.ledger.spooled_bytes
            self.the_database_has_all_that_is_safe()

    @rule(steps=st.none() | st.integers(0, 6), sessions=st.integers(0, 3))
    def it_is_killed(self, steps: int | None, sessions: int) -> None:
        """Between two writes, or after so many of the moments of one; the next process has some sessions."""
        if steps is not None:
            self.steps_to_live = steps
            try:
                self.ledger._step()
            except Killed:
                pass
            finally:
                self.steps_to_live = None
            self.ledger._lines.flush(10)
            lines = map(json.loads, self.lines)
            printed = {line["session_id"] for line in lines if line["reason"] == "peer_left"}
            for session_id, told in self.sessions.items():
                if told.newest.closed and session_id not in printed:
                    told.may_lack_a_line = True
        self.ledger._lines.close(10)
        self.ledger._spool.close()
        self.start()
        self.sessions_begin(sessions, written=True)

    @rule()
    def another_node_takes_it_for_dead(self) -> None:
        RelayNode.objects.all().delete()
        for closed in nodes.settle("default", lost_seconds=60):
            self.lines += map(log_line, closed)

    @rule(away=st.booleans(), seconds=st.sampled_from([0, 11]), written=st.booleans())
    def the_database_goes_or_comes(self, away: bool, seconds: float, written: bool) -> None:
        self.away = away
        self.now += seconds  # so long that it's tried again
        if written:
            self.the_writer_writes()

    @rule(seconds=st.sampled_from([1, 11]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # What has to be true

    def the_database_has_all_that_is_safe(self) -> None:
        """Each session in one row, and what it came to after it was closed too early in others."""
        of_session: dict[str, list[RelaySession]] = {}
        for row in RelaySession.objects.all():
            of_session.setdefault(row.session_id, []).append(row)
        for session_id, told in self.sessions.items():
            found = of_session.pop(session_id, [])
            total = sum(row.total_bytes for row in found)
            assert total in told.figures
            assert Counter(row.timestamp is None for row in found)[True] <= 1
            ends = [row for row in found if row.reason == "peer_left"]
            assert len(ends) <= 1
            assert all(row.reason in {"peer_left", "node_lost", ""} for row in found)
            if told.safe is not None:
                assert total >= told.safe.total_bytes
                if told.safe.closed:
                    assert total == told.safe.total_bytes
                    (end,) = ends
                    assert end.timestamp == told.safe.timestamp
        assert not of_session, "rows of sessions that nobody had"

    def each_closed_row_has_one_line(self) -> None:
        self.ledger._lines.flush(10)
        printed = {line["session_uuid"]: line for line in map(json.loads, self.lines)}
        assert len(printed) == len(self.lines), "a second line"
        for row in RelaySession.objects.filter(timestamp__isnull=False):
            line = printed.pop(str(row.session_uuid), None)
            if line is None:
                assert self.sessions[row.session_id].may_lack_a_line
            else:
                assert line == {"event": "session_closed"} | {n: plain(getattr(row, n)) for n in LINE_FIELDS}
        assert not printed, "a line without a row"

    def teardown(self) -> None:
        """In the end, with the database there, all is closed and nothing that was safe is missing."""
        try:
            self.away = False
            self.it_is_killed(None, 0)
            self.now += 11
            self.ledger._step()
            assert not list(Path(self.folder.name).glob("*.spool"))
            self.the_database_has_all_that_is_safe()
            self.another_node_takes_it_for_dead()
            assert not RelaySession.objects.filter(timestamp__isnull=True).exists()
            assert not RelayLeg.objects.filter(left_at__isnull=True).exists()
            self.the_database_has_all_that_is_safe()
            self.each_closed_row_has_one_line()
        finally:
            self.ledger._lines.close(10)
            self.collect.stop()
            self.folder.cleanup()


class Collect(logging.Handler):
    """Keeps what is printed on `relay.usage`."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines
        self._logger = logging.getLogger("relay.usage")
        self._others, self._logger.handlers = self._logger.handlers, [self]

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def stop(self) -> None:
        self._logger.handlers = self._others


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_whatever_happens_in_whatever_order_what_was_safe_is_there_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds: list[World] = []

    def make() -> World:
        worlds.append(World())
        return worlds[-1]

    for owner, name in ((rows, "write"), (Spool, "_write"), (Spool, "clear")):
        original = getattr(owner, name)
        step = "write_rows" if owner is rows else f"{name.strip('_')}_spool"
        monkeypatch.setattr(
            owner,
            name,
            # A function, so that it becomes a method of `Spool`.
            lambda *args, step=step, original=original: getattr(worlds[-1], step)(original, *args),
        )
    run_state_machine_as_test(
        make,
        settings=settings(
            max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
