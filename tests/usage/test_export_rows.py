"""What is in an export, in the process of the test: window, order, figures, and when rows are read."""

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection

from relay.ledger.exports import columns, events, export
from relay.ledger.exports.formats import Options
from relay.ledger.writing import rows
from relay.management.output import open_output
from relay.models import RelaySession
from tests.databases import Database
from tests.usage.samples import START, ended, live, uuid

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

DAY = export.Window(START.replace(hour=0), START.replace(hour=0) + timedelta(days=1))


def names(sessions: Any, form: str = "jsonl", **options: Any) -> list[str]:
    lines = b"".join(export.stream(sessions, form, **options)).splitlines()
    return [json.loads(line)["session_id"] for line in lines]


@pytest.fixture
def plus_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time is an hour ahead of UTC."""
    monkeypatch.setenv("TZ", "Africa/Lagos")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_window_holds_its_first_moment_and_not_its_last(database: Database) -> None:
    moments = [DAY.start, DAY.start - timedelta(milliseconds=1), DAY.end, DAY.end - timedelta(milliseconds=1)]
    rows.write([ended(number, timestamp=moment) for number, moment in enumerate(moments)], "default")
    assert names(export.ended_sessions(DAY)) == ["session-0", "session-3"]


@pytest.mark.usefixtures("plus_one")
def test_a_moment_without_a_zone_is_utc_wherever_the_machine_is(database: Database) -> None:
    assert export.moment("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    assert export.moment("2026-11-01T08:30+01:00") == datetime(2026, 11, 1, 7, 30, tzinfo=UTC)
    assert export.month("2026-11").start == datetime(2026, 11, 1, tzinfo=UTC)


def test_an_export_of_any_sessions_has_the_ended_ones(database: Database) -> None:
    rows.write([ended(1), live(2)], "default")
    assert names(RelaySession.objects.all()) == ["session-1"]


def test_what_is_new_without_a_window_has_no_live_session(database: Database) -> None:
    rows.write([ended(1), live(2)], "default")
    everything = export.Window(None, None)
    assert [session.session_id for session in export.ended_sessions(everything)] == ["session-1"]


def test_the_chunks_of_an_export_are_the_rows_in_order(database: Database) -> None:
    """By end, and by UUID where that is the same; a time has its milliseconds even where there are none."""
    moments = {3: 1, 1: 1, 2: 0, 4: 0.25}
    records = [ended(n, timestamp=START + timedelta(seconds=seconds)) for n, seconds in moments.items()]
    rows.write(records, "default")
    found = b"".join(export.stream(RelaySession.objects.all(), "csv")).decode().splitlines()[1:]
    assert [(line.split(",")[0], line.split(",")[5]) for line in found] == [
        ("session-2", "2026-11-03T12:00:00.000Z"),
        ("session-4", "2026-11-03T12:00:00.250Z"),
        ("session-1", "2026-11-03T12:00:01.000Z"),
        ("session-3", "2026-11-03T12:00:01.000Z"),
    ]


def test_totals_of_sessions_without_an_account_come_first(database: Database) -> None:
    rows.write([ended(1), ended(2, account_id=None), ended(3, account_id="Zoe")], "default")
    lines = b"".join(export.stream(RelaySession.objects.all(), "jsonl", by="day")).splitlines()
    assert [json.loads(line)["account_id"] for line in lines] == [None, "Zoe", "acme"]


def test_durations_add_up_to_the_millisecond(database: Database) -> None:
    """As floating-point numbers, many of them are a little less than what they are in milliseconds."""
    rows.write([ended(n, waiting_ms=0, paired_ms=1000 + n) for n in range(1, 500)], "default")
    [line] = b"".join(export.stream(RelaySession.objects.all(), "jsonl", by="month")).splitlines()
    whole = sum(1000 + n for n in range(1, 500)) / 1000
    assert (json.loads(line)["paired_seconds"], json.loads(line)["duration_seconds"]) == (whole, whole)


def test_a_summary_is_of_all_that_was_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROWS_IN_MEMORY", 2)
    rows.write([*map(ended, range(1, 5)), ended(5, account_id=None)], "default")
    seen: list[int] = []
    for form in ("csv", "jsonl", "parquet", "stripe"):
        summary = export.Summary()
        whole = b"".join(
            export.stream(RelaySession.objects.all(), form, summary=summary, progress=seen.append)
        )
        assert summary.digest == hashlib.sha256(whole).hexdigest()
        assert summary.file_bytes == len(whole)
        assert (summary.sessions, summary.rows) == (5, 4 if form == "stripe" else 5)
        assert summary.total_bytes == sum(3000 + n for n in range(1, 6))
        assert summary.accounts == {"acme", None}
        assert summary.first == "2026-11-03T12:00:01.000Z"
    assert seen == [2, 2, 1] * 4


def test_rows_are_read_as_they_are_asked_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month may have more than memory holds."""
    monkeypatch.setattr(export, "ROWS_IN_MEMORY", 10)
    monkeypatch.setattr("django.db.models.sql.compiler.GET_ITERATOR_CHUNK_SIZE", 10)
    rows.write(list(map(ended, range(100))), "default")
    made: list[object] = []
    original = columns.Iso.as_sqlite

    # What the database makes of each row is counted by the database itself.
    def counted(*args: Any, **options: Any) -> Any:
        sql, parameters = original(*args, **options)
        return f"noted({sql})", parameters

    connection.ensure_connection()
    connection.connection.create_function("noted", 1, lambda value: made.append(value) or value)
    monkeypatch.setattr(columns.Iso, "as_sqlite", counted)
    chunks = export.stream(RelaySession.objects.order_by("timestamp"), "jsonl")
    next(chunks)
    assert len(made) < 50
    assert sum(chunk.count(b"\n") for chunk in chunks) == 90
    connection.close()


def test_of_a_database_that_is_away_not_even_a_header_is_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(sessions: Any) -> Iterator[Any]:
        raise OperationalError("away")
        yield

    monkeypatch.setattr(export, "_by_session", away)
    with pytest.raises(OperationalError):
        next(export.stream(RelaySession.objects.all(), "csv"))


def test_json_lines_are_ascii(database: Database) -> None:
    rows.write([ended(1, account_id="\u00e9\u2028")], "default")
    assert b"".join(export.stream(RelaySession.objects.all(), "jsonl")).isascii()


def test_a_duration_in_an_event_is_exact(database: Database) -> None:
    rows.write([ended(n, paired_ms=n) for n in range(1, 1100)], "default")
    lines = b"".join(export.stream(RelaySession.objects.all(), "stripe", Options("paired_ms"))).splitlines()
    assert [int(json.loads(line)["payload"]["value"]) for line in lines] == list(range(1, 1100))


def test_a_request_is_full_though_its_events_were_read_in_parts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROWS_IN_MEMORY", 60)
    rows.write(list(map(ended, range(1, 251))), "default")
    lines = b"".join(export.stream(RelaySession.objects.all(), "lago")).splitlines()
    assert [len(json.loads(line)["events"]) for line in lines] == [100, 100, 50]
    assert events.EVENTS_AT_ONCE == 100


def test_an_output_keeps_the_mode_of_the_file_that_was_there(database: Database, tmp_path: Path) -> None:
    """Through a link, which stays one."""
    target, link = tmp_path / "usage.csv", tmp_path / "latest.csv"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with open_output(str(link), sys.stdout) as write:
        write(b"new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)


def test_what_an_export_says_where_nobody_looks_is_one_line(
    database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    rows.write([ended(1, session_id="only", session_uuid=uuid(7))], "default")
    out, err = io.StringIO(), io.StringIO()
    call_command("export_usage", "--month", "2026-11", stdout=out, stderr=err)
    assert len(out.getvalue().splitlines()) == 2
    assert err.getvalue().startswith("1 rows, ")
    assert len(err.getvalue().splitlines()) == 1
    assert capfd.readouterr().err == ""
    assert not os.isatty(2)
