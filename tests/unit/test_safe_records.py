"""When the ledger says that a session's record is safe: not before, and whatever has it then."""

import threading

import pytest
from django.db import OperationalError

from relay.ledger import Ledger
from relay.ledger.writing.lines import LinePrinter, usage_log
from tests.usage.samples import ended

SOON = 20.0


class Database:
    """In place of the writer's attempt on a real one: takes what it's given when it's let, or is `away`."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Event(), threading.Event()
        self.away = False

    def attempt(self, ledger: Ledger) -> bool:
        if self.away:
            ledger._note_failure(OperationalError("away"))
            ledger._put_into_spool()
            return False
        self.asked.set()
        assert self.let.wait(SOON)
        return True


@pytest.fixture
def database(monkeypatch):
    made = Database()
    monkeypatch.setattr(Ledger, "_attempt", lambda self: made.attempt(self))
    yield made
    made.let.set()


@pytest.fixture
def ledger(database, tmp_path):
    made = Ledger(batch_seconds=0, spool_dir=tmp_path)
    yield made
    database.let.set()
    made.close(0)


@pytest.mark.parametrize("printed", [False, True])
def test_a_record_is_safe_when_the_database_has_it_and_not_before(ledger, database, printed):
    ledger.record(ended())
    safe = ledger.safe(ended().session_uuid, printed=printed)
    assert database.asked.wait(SOON)
    assert not safe.done()
    database.let.set()
    safe.result(SOON)
    assert ledger.unwritten == 0


def test_a_record_is_safe_in_the_spool_while_the_database_is_away(ledger, database):
    database.away = True
    ledger.record(ended())
    ledger.safe(ended().session_uuid).result(SOON)
    assert ledger.spooled_bytes > 0


def test_a_session_of_which_nothing_waits_is_safe_at_once(ledger):
    assert ledger.safe(ended().session_uuid).done()


def test_what_comes_after_a_line_is_called_when_that_is_printed(monkeypatch):
    printing, let, told = threading.Event(), threading.Event(), threading.Event()

    def info(line: str) -> None:
        printing.set()
        assert let.wait(SOON)

    monkeypatch.setattr(usage_log, "info", info)
    lines = LinePrinter()
    lines.put(ended())
    assert printing.wait(SOON)
    lines.after_these(told.set)
    assert not told.is_set()
    let.set()
    assert told.wait(SOON)
    assert lines.close(SOON)
