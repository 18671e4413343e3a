"""`correct_usage`: a new record, with differences that add up to the right figures."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.forms import model_to_dict

from relay.ledger import corrections
from relay.ledger.exports import export
from relay.ledger.writing import rows
from relay.models import RelaySession
from tests.databases import Database
from tests.usage.samples import START, ended, live, uuid

SESSION = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def session(database: Database) -> dict[str, Any]:
    """One ended session as it is written: 1001 and 2000 bytes, 0.1 s and 0.2 s."""
    rows.write([ended(1), live(2)], "default")
    return as_written()


def as_written() -> dict[str, Any]:
    return model_to_dict(RelaySession.objects.get(pk=uuid(1)))


def correct(*args: str) -> None:
    call_command("correct_usage", SESSION, "--note", "a test", *args)


def billed() -> dict[str, Any]:
    """What the account comes to over all time, as the totals have it."""
    sessions = RelaySession.objects.filter(session_id="session-1")
    lines = b"".join(export.stream(sessions, "jsonl", by="month")).splitlines()
    totals = [json.loads(line) for line in lines]
    return {
        name: round(sum(total[name] for total in totals), 3)
        for name in (*corrections.FIGURES, "total_bytes", "duration_seconds", "sessions")
    }


def test_the_session_and_its_corrections_add_up_to_the_right_figures(session: dict[str, Any]) -> None:
    correct("--bytes-client-to-server", "500", "--paired-seconds", "0.05")
    correct("--bytes-client-to-server", "700", "--frames-server-to-client", "9")
    assert billed() == {
        "bytes_client_to_server": 700,
        "bytes_server_to_client": 2000,
        "total_bytes": 2700,
        "frames_client_to_server": 3,
        "frames_server_to_client": 9,
        "waiting_seconds": 0.1,
        "paired_seconds": 0.05,
        "duration_seconds": 0.15,
        "sessions": 1,
    }


def test_the_session_itself_stays_as_it_was_written(session: dict[str, Any]) -> None:
    correct("--void")
    assert as_written() == session
    rows.write([ended(1, bytes_client_to_server=9)], "default")  # nor does a replay of its spool change it
    assert as_written() == session


def test_a_correction_says_what_it_corrects_and_why_and_ends_when_it_is_made(session: dict[str, Any]) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    correct("--bytes-server-to-client", "2500")
    made = RelaySession.objects.get(corrects=uuid(1))
    assert (made.revision, made.note, made.account_id, made.session_id) == (1, "a test", "acme", "session-1")
    assert (made.bytes_server_to_client, made.total_bytes, made.reason) == (500, 500, "peer_left")
    assert made.timestamp is not None
    assert before <= made.timestamp <= datetime.now(UTC)


def test_a_voided_session_comes_to_nothing(session: dict[str, Any]) -> None:
    correct("--void")
    assert set(billed().values()) == {0, 1}  # and is still one session


def test_the_same_correction_twice_is_one(
    session: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    correct("--bytes-client-to-server", "500")
    correct("--bytes-client-to-server", "500")
    assert RelaySession.objects.filter(corrects=uuid(1)).count() == 1
    assert capsys.readouterr().err.splitlines() == [
        f"correction 1 of {SESSION}: bytes_client_to_server -501",
        "the figures are so already: nothing recorded",
    ]


def test_of_two_at_once_the_second_sees_the_first(session: dict[str, Any]) -> None:
    together = threading.Barrier(2)

    def correct_to(right: int) -> None:
        together.wait()
        try:
            corrections.correct(uuid(1), {"bytes_client_to_server": right}, "a test")
        finally:
            connections.close_all()

    both = [threading.Thread(target=correct_to, args=(right,)) for right in (500, 600)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    made = RelaySession.objects.filter(corrects=uuid(1))
    assert sorted(made.values_list("revision", flat=True)) == [1, 2]
    assert billed()["bytes_client_to_server"] in (500, 600)


def test_past_exports_stay_as_they_were_and_the_next_has_the_correction(
    session: dict[str, Any], tmp_path: Path
) -> None:
    window = export.Window(START, START + timedelta(days=1))
    past = b"".join(export.stream(export.ended_sessions(window), "csv"))
    new = ("--new", "--destination", "billing", "--format", "jsonl", "--output")
    call_command("export_usage", *new, str(tmp_path / "1"))
    correct("--bytes-client-to-server", "500")
    assert b"".join(export.stream(export.ended_sessions(window), "csv")) == past
    call_command("export_usage", *new, str(tmp_path / "2"))
    [row] = [json.loads(line) for line in (tmp_path / "2").read_text().splitlines()]
    assert (row["corrects"], row["revision"], row["total_bytes"]) == (SESSION, 1, -501)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("x", "--void", "--note", "a"), "expected the UUID of a session, got 'x'"),
        ((str(uuid(3)), "--void", "--note", "a"), "there is no session"),
        ((str(uuid(2)), "--void", "--note", "a"), "is still live"),
        ((SESSION, "--note", "a"), "expected either figures or --void"),
        ((SESSION, "--void", "--paired-seconds", "1", "--note", "a"), "expected either figures or --void"),
        ((SESSION, "--void", "--note", " "), "the note: expected 1 to 255"),
        ((SESSION, "--void", "--note", "x" * 256), "the note: expected 1 to 255"),
        ((SESSION, "--bytes-client-to-server", str(2**53), "--note", "a"), "client_to_server: expected what"),
        ((SESSION, "--paired-seconds", "-1", "--note", "a"), "paired_seconds: expected what is right"),
        ((SESSION, "--paired-seconds", "nan", "--note", "a"), "paired_seconds: expected what is right"),
    ],
)
def test_what_the_caller_can_mend_is_status_2(
    session: dict[str, Any], args: tuple[str, ...], says: str
) -> None:
    with pytest.raises(CommandError, match=says) as error:
        call_command("correct_usage", *args)
    assert error.value.returncode == 2
    assert not RelaySession.objects.filter(corrects__isnull=False).exists()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_totals_follow_and_are_not_corrected_themselves(session: dict[str, Any]) -> None:
    with pytest.raises(corrections.CorrectionError, match="total_bytes: expected one of"):
        corrections.correct(uuid(1), {"total_bytes": 1}, "a test")


def test_a_correction_is_not_corrected_but_its_session(session: dict[str, Any]) -> None:
    correct("--bytes-client-to-server", "500")
    made = RelaySession.objects.get(corrects=uuid(1))
    with pytest.raises(CommandError, match=f"is a correction: correct the session {SESSION}"):
        call_command("correct_usage", str(made.pk), "--void", "--note", "a")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_seconds_are_rounded_to_the_millisecond_and_not_cut(session: dict[str, Any]) -> None:
    correct("--paired-seconds", "1.001")  # as a float, 1000.99... milliseconds
    assert billed()["paired_seconds"] == 1.001


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_note_of_the_longest_length_and_the_largest_count_are_taken(session: dict[str, Any]) -> None:
    made = corrections.correct(uuid(1), {"bytes_client_to_server": 2**53 - 1}, "x" * 255)
    assert made is not None
    assert (len(made.note), billed()["bytes_client_to_server"]) == (255, 2**53 - 1)
