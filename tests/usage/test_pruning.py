"""`prune_usage`: only what was exported goes, and it can't come back."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from relay.ledger import corrections, pruning
from relay.ledger.writing import rows
from relay.models import ExportedSession, RelayLeg, RelaySession, UsageExport
from tests.databases import Database
from tests.usage.samples import ended, leg, live, uuid

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
CUT = LONG_AGO + timedelta(days=10)


def fill(first: int, last: int, days: int = 0) -> None:
    rows.write(
        [
            ended(
                number,
                timestamp=LONG_AGO + timedelta(days=days, seconds=number),
                legs=(leg(number * 10, left_at=LONG_AGO), leg(number * 10 + 1, left_at=LONG_AGO)),
            )
            for number in range(first, last + 1)
        ],
        "default",
    )


def export_to(folder: Path, *destinations: str) -> None:
    for destination in destinations:
        output = folder / f"{destination}-{UsageExport.objects.count()}"
        call_command("export_usage", "--new", "--destination", destination, "--output", str(output))


def prune(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, int]:
    """How many it says were deleted and kept."""
    capsys.readouterr()
    call_command("prune_usage", "--before", CUT.isoformat(), *args)
    found = re.match(r"(\d+) records deleted, (\d+) kept", capsys.readouterr().err)
    assert found
    return int(found[1]), int(found[2])


def left() -> list[int]:
    return sorted(session.pk.int for session in RelaySession.objects.all())


def test_only_what_was_exported_goes_with_its_legs_and_marks(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(1, 3)
    fill(4, 5, days=10)
    rows.write([live(9, started_at=LONG_AGO)], "default")
    export_to(tmp_path, "billing")
    fill(6, 7)  # came late, from a spool
    assert prune(capsys) == (3, 2)
    assert left() == [4, 5, 6, 7, 9]
    assert sorted(found.session_id.int for found in ExportedSession.objects.all()) == [4, 5]
    assert sorted(found.pk.int for found in RelayLeg.objects.all()) == [40, 41, 50, 51, 60, 61, 70, 71]
    assert prune(capsys) == (0, 2)
    export_to(tmp_path, "billing")
    assert prune(capsys) == (2, 0)


def test_every_destination_has_to_have_it_unless_one_is_named(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(1, 2)
    export_to(tmp_path, "billing", "audit")
    fill(3, 4)
    export_to(tmp_path, "billing")
    assert prune(capsys) == (2, 2)
    assert prune(capsys, "--destination", "audit") == (0, 2)
    assert prune(capsys, "--destination", "billing") == (2, 0)
    fill(5, 6)
    export_to(tmp_path, "audit")  # nor is it enough that only the other one has it
    assert prune(capsys) == (0, 2)


def test_nothing_goes_that_was_exported_nowhere(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(1, 2)
    assert prune(capsys) == (0, 2)


def test_what_is_in_a_file_that_is_not_in_its_place_yet_stays(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may have to be made again from the records."""
    fill(1, 2)
    export_to(tmp_path, "billing")
    UsageExport.objects.update(delivered_at=None)
    assert prune(capsys) == (0, 2)


def test_it_goes_in_batches_of_one_transaction_each(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in the third keeps what the first two did."""
    monkeypatch.setattr(pruning, "SESSIONS_AT_ONCE", 10)
    fill(1, 35)
    export_to(tmp_path, "billing")
    delete, calls = pruning._delete, 0

    def delete_twice(uuids: list[Any], using: str) -> None:
        nonlocal calls
        delete(uuids, using)
        calls += 1
        if calls == 6:  # corrections and originals, in each batch
            raise ZeroDivisionError

    monkeypatch.setattr(pruning, "_delete", delete_twice)
    with pytest.raises(ZeroDivisionError):
        pruning.prune(CUT, ["billing"])
    assert left() == list(range(21, 36))
    assert pruning.prune(CUT, ["billing"]) == pruning.Pruned(deleted=15, kept=0)


def test_a_session_and_its_corrections_stay_or_go_together(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(1, 2)

    def correction(number: int, of: int, days: int) -> None:
        moment = LONG_AGO + timedelta(days=days)
        RelaySession.objects.create(
            session_uuid=uuid(number),
            session_id=f"session-{of}",
            corrects_id=uuid(of),
            revision=1,
            timestamp=moment,
            started_at=moment,
            reason="peer_left",
        )

    correction(11, of=1, days=1)
    correction(12, of=2, days=20)
    export_to(tmp_path, "billing")
    assert prune(capsys) == (2, 1)
    assert left() == [2, 12]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--before", "yesterday"), "--before: expected a date"),
        (("--before", "2999-01-01"), "or earlier, as RELAY_KEEP_USAGE_DAYS is 35"),
        (("--before", "2026-01-01", "--destination", "nobody"), "nothing was exported to 'nobody'"),
    ],
)
def test_what_the_caller_can_mend_is_status_2(database: Database, args: tuple[str, ...], says: str) -> None:
    with pytest.raises(CommandError, match=says) as error:
        call_command("prune_usage", *args)
    assert error.value.returncode == 2


def test_what_is_younger_than_a_spool_may_be_stays(database: Database) -> None:
    """Else a replay would bring it back without its marks, to be billed again."""
    late = datetime.now(UTC) - timedelta(days=34)
    with pytest.raises(CommandError, match="or earlier"):
        call_command("prune_usage", "--before", late.isoformat())
    call_command("prune_usage", "--before", (late - timedelta(days=2)).isoformat())


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_is_away_is_status_1(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "NAME", "/nowhere/at/all")
        with pytest.raises(CommandError, match="the database can't be written to: ") as error:
            call_command("prune_usage", "--before", CUT.isoformat())
    assert error.value.returncode == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_ended_at_the_very_moment_stays(database: Database, tmp_path: Path) -> None:
    rows.write([ended(1, timestamp=CUT - timedelta(milliseconds=1)), ended(2, timestamp=CUT)], "default")
    export_to(tmp_path, "billing")
    assert pruning.prune(CUT, ["billing"]) == pruning.Pruned(deleted=1, kept=0)
    assert left() == [2]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_of_many_that_ended_at_the_same_moment_none_is_passed_over(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "SESSIONS_AT_ONCE", 2)
    rows.write([ended(number, timestamp=LONG_AGO) for number in range(1, 8)], "default")
    export_to(tmp_path, "billing")
    assert pruning.prune(CUT, ["billing"]) == pruning.Pruned(deleted=7, kept=0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_session_that_is_corrected_while_others_are_deleted_stays(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The correction is in no export yet, and would have nothing left to refer to."""
    fill(1, 2)
    export_to(tmp_path, "billing")
    batches = pruning._batches

    def corrected_meanwhile(uuids: Any) -> Any:
        for batch in batches(uuids):
            assert corrections.correct(uuid(2), {"bytes_client_to_server": 1}, "meanwhile")
            yield batch

    monkeypatch.setattr(pruning, "_batches", corrected_meanwhile)
    assert pruning.prune(CUT, ["billing"]).deleted == 1
    assert uuid(2).int in left()
