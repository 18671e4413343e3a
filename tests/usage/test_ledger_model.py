"""The ledger beside a model of what it has to remember: a crash may come between any two of its steps.

The steps are those of the writer thread, taken one by one: a record comes, the writer tries the database,
which is there or away, the process is killed, be it half-way, the next one starts.
"""

import json
import logging
from dataclasses import replace
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
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.ledger import Ledger, SessionRecord, rows
from relay.ledger.records import merge
from relay.models import RelayLeg, RelayNode, RelaySession
from tests.databases import Database
from tests.usage.samples import START, leg, live


class Killed(BaseException):
    """The process is killed here."""


class Steps(Ledger):
    """A ledger whose writer thread is the test: it takes a step when it's told to."""

    def _start(self) -> None:
        self._stopping = self._giving_up = False

    def step(self) -> bool:
        """What the writer does for the records that wait; whether all is in the database then."""
        self._take()
        if not self._attempt():
            return False
        self._batch = {}
        return True


class LedgerAndSpool(RuleBasedStateMachine):
    """One process after the other, with one spool folder and one database."""

    def __init__(self) -> None:
        super().__init__()
        for table in (RelayLeg, RelaySession, RelayNode):
            table.objects.all().delete()
        self.folder = TemporaryDirectory()
        self.number = 0
        self.now = 1000.0
        self.lines: list[str] = []
        self.away = False
        self.dies_after: int | None = None
        # What a crash may not take: the newest record of each session that is in the spool or the tables.
        self.safe: dict[Any, SessionRecord] = {}
        # And what may or may not be there, as it was on its way.
        self.told: dict[Any, list[SessionRecord]] = {}
        self.newest: dict[Any, SessionRecord] = {}
        self.lost: set[Any] = set()
        self.collect = Collect(self.lines)
        self.start()

    def start(self) -> None:
        """The next process."""
        self.number += 1
        self.ledger = Steps(
            node=f"host:{10_000_000 + self.number}:1",
            spool_dir=Path(self.folder.name),
            batch_seconds=0,
            clock=lambda: self.now,
        )
        self.mine: set[int] = set()

    def write(self, records: Any, using: str) -> None:
        """As `rows.write`, where the database is there for so many of its transactions."""
        if self.away:
            raise OperationalError("away")
        if self.dies_after == 0:
            raise Killed
        original_write(records, using)
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after == 0:
                raise Killed  # written, and nobody knows

    # What happens

    def _record(self, record: SessionRecord) -> None:
        self.ledger.record(record)
        key = record.session_uuid
        self.newest[key] = merge(self.newest.get(key), record)
        self.told.setdefault(key, []).append(self.newest[key])

    @rule(count=st.integers(1, 3))
    def a_session_begins(self, count: int) -> None:
        for _ in range(count):
            number = len(self.told) + 1
            self.mine.add(number)
            self._record(live(number, node=self.ledger._node, legs=(leg(number, node=self.ledger._node),)))

    @precondition(lambda self: self.mine)
    @rule(data=st.data(), nbytes=st.integers(1, 1000))
    def it_goes_on(self, data: Any, nbytes: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.mine)))
        before = self.newest[live(number).session_uuid]
        self._record(replace(before, bytes_client_to_server=before.bytes_client_to_server + nbytes))

    @precondition(lambda self: self.mine)
    @rule(data=st.data())
    def it_ends(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.mine)))
        self.mine.discard(number)
        before = self.newest[live(number).session_uuid]
        legs = tuple(replace(one, left_at=START) for one in before.legs)
        end = START + timedelta(seconds=number)
        self._record(replace(before, timestamp=end, reason="peer_left", legs=legs))

    @rule()
    def the_writer_writes(self) -> None:
        if self.ledger.step():
            assert not self.ledger.spooled_bytes
        assert self.ledger.unwritten == 0  # in the tables, or in the spool
        self.safe = dict(self.newest)
        self.a_row_says_what_was_told_of_its_session_and_nothing_else()

    @rule(transactions=st.integers(0, 3))
    def it_is_killed_while_it_writes(self, transactions: int) -> None:
        self.dies_after = transactions
        try:
            self.ledger.step()
        except Killed:
            pass
        finally:
            self.dies_after = None
        self.it_is_killed()

    @rule()
    def it_is_killed(self) -> None:
        self.ledger._lines.close(10)
        self.ledger._spool.close()
        ends = {uuid for uuid, record in self.safe.items() if record.closed}
        self.lost |= self.told.keys() - ends
        self.newest = dict(self.safe)
        self.start()

    @rule(cut=st.integers(1, 50))
    def its_last_record_is_torn(self, cut: int) -> None:
        """As a crash of the machine may leave it, in the midst of an append that nobody was told of."""
        spool = self.ledger._spool
        self.ledger._lines.close(10)
        if spool.size:
            with spool.path.open("ab") as file:
                file.write(b"0badc0de F " + bytes(cut))
        self.it_is_killed()

    @rule()
    def the_database_goes(self) -> None:
        self.away = True

    @rule()
    def the_database_comes_back(self) -> None:
        self.away = False

    @rule(seconds=st.sampled_from([1, 11]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # What has to be true

    def a_row_says_what_was_told_of_its_session_and_nothing_else(self) -> None:
        for row in RelaySession.objects.all():
            told = self.told[row.session_uuid]
            figures = {record.bytes_client_to_server for record in told}
            assert row.bytes_client_to_server in figures
            if row.reason == "peer_left":
                assert row.bytes_client_to_server == told[-1].bytes_client_to_server
                assert row.timestamp == told[-1].timestamp
            elif row.reason:
                assert row.reason == "node_lost"
                assert row.session_uuid in self.lost

    def no_session_has_two_lines(self) -> None:
        self.ledger._lines.flush(10)
        printed = [json.loads(line) for line in self.lines]
        by_session = {line["session_uuid"]: line for line in printed}
        assert len(by_session) == len(printed)
        for row in RelaySession.objects.filter(timestamp__isnull=False):
            line = by_session.get(str(row.session_uuid))
            # None where it was killed between the transaction and its line.
            assert line is None or line["reason"] == row.reason
            assert line is not None or row.session_uuid in self.lost

    def teardown(self) -> None:
        """In the end, with the database there, nothing that was safe is missing."""
        try:
            self.away = False
            self.it_is_killed()
            self.now += 11
            assert self.ledger.step()
            assert not list(Path(self.folder.name).iterdir())
            for uuid, record in self.safe.items():
                row = RelaySession.objects.get(pk=uuid)
                assert row.bytes_client_to_server >= record.bytes_client_to_server
                assert row.reason == ("peer_left" if record.closed else row.reason)
                assert row.timestamp is not None, "it is nobody's, and open"
            assert not RelayLeg.objects.filter(left_at__isnull=True).exists()
            self.a_row_says_what_was_told_of_its_session_and_nothing_else()
            self.no_session_has_two_lines()
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


original_write = rows.write


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_whatever_happens_in_whatever_order_what_was_safe_is_there_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines: list[LedgerAndSpool] = []

    def machine() -> LedgerAndSpool:
        made = LedgerAndSpool()
        machines.append(made)
        return made

    monkeypatch.setattr(rows, "write", lambda records, using: machines[-1].write(records, using))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
