"""`export_usage`: the same bytes from both databases, data only on stdout, whole files or none."""

import os
import stat
import subprocess
import sys
import termios
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from relay.ledger.exports import export
from relay.ledger.writing import rows
from relay.management.output import open_output
from tests.databases import Database
from tests.usage.samples import START, ended, live

CSV = """\
session_id,duration_seconds,bytes_client_to_server,bytes_server_to_client,total_bytes,timestamp,session_uuid,\
account_id,reason,waiting_seconds,paired_seconds,frames_client_to_server,frames_server_to_client,corrects,revision
session-1,0.3,1001,2000,3001,2026-11-03T12:00:00.000Z,00000000-0000-0000-0000-000000000001,\
acme,peer_left,0.1,0.2,3,4,,0
session-2,0.3,1002,2000,3002,2026-11-03T12:00:01.120Z,00000000-0000-0000-0000-000000000002,\
acme,peer_left,0.1,0.2,3,4,,0
session-3,0.3,1003,2000,3003,2026-11-03T12:00:01.120Z,00000000-0000-0000-0000-000000000003,\
,node_lost,0.1,0.2,3,4,,0
session-4,3600.007,1004,2000,3004,2026-11-03T23:59:59.999Z,00000000-0000-0000-0000-000000000004,\
"b, \u00e9""x",wait_timeout,3600.007,0.0,3,4,,0
"""

JSONL = (
    '{"session_id": "session-4", "duration_seconds": 3600.007, "bytes_client_to_server": 1004, '
    '"bytes_server_to_client": 2000, "total_bytes": 3004, "timestamp": "2026-11-03T23:59:59.999Z", '
    '"session_uuid": "00000000-0000-0000-0000-000000000004", "account_id": "b, \\u00e9\\"x", '
    '"reason": "wait_timeout", "waiting_seconds": 3600.007, "paired_seconds": 0.0, '
    '"frames_client_to_server": 3, "frames_server_to_client": 4, "corrects": null, "revision": 0}\n'
)

DAY = ("--from", "2026-11-03", "--to", "2026-11-04")


@pytest.fixture
def filled(database: Database) -> Database:
    """Five sessions that ended, on both sides of a window's ends, and one that has not."""
    records = [
        ended(3, timestamp=START + timedelta(seconds=1.12), account_id=None, reason="node_lost"),
        ended(2, timestamp=START + timedelta(seconds=1.12)),
        ended(1, timestamp=START),
        ended(
            4,
            timestamp=START + timedelta(hours=12, milliseconds=-1),
            account_id='b, \u00e9"x',
            reason="wait_timeout",
            waiting_ms=3_600_007,
            paired_ms=0,
        ),
        ended(5, timestamp=START + timedelta(hours=12), account_id="next-day"),
        live(6, account_id="waiting"),
    ]
    rows.write(records, "default")
    return database


def run(database: Database, *args: str, command: str = "export_usage") -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "DATABASE_URL": database.url, "PYTHONWARNINGS": "error", "LC_ALL": "C"}
    return subprocess.run(
        [sys.executable, "manage.py", command, *args], env=environ, capture_output=True, timeout=60
    )


def test_csv_is_the_same_bytes_on_both_databases_and_nothing_else_is_on_stdout(filled: Database) -> None:
    done = run(filled, *DAY)
    assert done.stdout == CSV.encode()
    assert done.stderr.decode().splitlines() == [
        f"4 rows, {len(CSV.encode())} bytes written, 12010 bytes relayed, 2 accounts, "
        "2026-11-03T00:00:00.000Z to 2026-11-04T00:00:00.000Z"
    ]
    assert done.returncode == 0


def test_json_lines_are_the_same_bytes_on_both_databases(filled: Database) -> None:
    done = run(filled, *DAY, "--format", "jsonl", "--account", 'b, \u00e9"x')
    assert done.stdout.decode() == JSONL


def test_the_window_is_half_open_and_utc(filled: Database) -> None:
    done = run(filled, "--from", "2026-11-03T13:00+01:00", "--to", "2026-11-03T12:00:01.120")
    assert [line.split(",")[0] for line in done.stdout.decode().splitlines()] == ["session_id", "session-1"]


def test_one_file_appears_whole_with_the_folders_usual_mode(filled: Database, tmp_path: Path) -> None:
    target = tmp_path / "usage.csv"
    done = run(filled, *DAY, "--output", str(target))
    assert (done.returncode, done.stdout) == (0, b"")
    assert target.read_bytes() == CSV.encode()
    (tmp_path / "touched").touch()
    assert target.stat().st_mode == (tmp_path / "touched").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"usage.csv", "touched"}


def test_a_file_that_is_there_keeps_its_mode_and_a_link_stays_a_link(
    filled: Database, tmp_path: Path
) -> None:
    target, link = tmp_path / "usage.csv", tmp_path / "latest.csv"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert run(filled, *DAY, "--output", str(link)).returncode == 0
    assert link.is_symlink()
    assert target.read_bytes() == CSV.encode()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_device_is_written_to_and_not_replaced(filled: Database) -> None:
    assert run(filled, *DAY, "--output", "/dev/null").returncode == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert run(filled, *DAY, "--output", "/dev/stdout").stdout == CSV.encode()


def test_a_full_disk_leaves_what_was_there(filled: Database) -> None:
    done = run(filled, *DAY, "--output", "/dev/full")
    assert done.returncode == 2
    assert done.stderr.decode() == "CommandError: --output: can't write /dev/full: No space left on device\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "expected a window: --from and --to, or --month"),
        (("--from", "2026-11-03"), "expected a window: --from and --to, or --month"),
        ((*DAY, "--month", "2026-11"), "--month: expected either that or --from and --to"),
        (("--month", "2026-13"), "--month: expected a month like 2026-11, got '2026-13'"),
        (("--month", "2026-1"), "--month: expected a month like 2026-11"),
        (("--from", "2026-11-04", "--to", "2026-11-03"), "the window is empty"),
        (("--from", "2026-11-04", "--to", "2026-11-04"), "the window is empty"),
        (("--from", "yesterday", "--to", "2026-11-03"), "--from: expected a date"),
        (("--from", "2026-11-03", "--to", "2026-13-01"), "--to: expected a date"),
        (("--from", "0001-01-01T00:00+23:00", "--to", "2026-11-03"), "--from: expected a date"),
        ((*DAY, "--account", "nobody"), "--account: there is no record of 'nobody'"),
        ((*DAY, "--output", "/nowhere/usage.csv"), "can't write /nowhere/usage.csv: No such file"),
        ((*DAY, "--output", "."), "can't write .: Is a directory"),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_the_caller_can_mend_is_one_line_and_status_2(
    filled: Database, args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError) as error:
        call_command("export_usage", *args)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.returncode == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_mistake_is_one_line_on_stderr(filled: Database) -> None:
    done = run(filled, "--from", "2026-11-04", "--to", "2026-11-03")
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("CommandError: the window is empty")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_account_with_nothing_in_the_window_gives_a_header(filled: Database) -> None:
    for account in ("next-day", "waiting"):
        done = run(filled, *DAY, "--account", account)
        assert (done.returncode, done.stdout.count(b"\n")) == (0, 1)


def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    target = tmp_path / "usage.csv"
    target.write_text("old")

    def interrupted() -> None:
        with open_output(str(target), sys.stdout) as write:
            write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_database_that_is_away_is_one_line_and_status_1() -> None:
    done = run(Database("sqlite", "sqlite:////nowhere/at/all"), *DAY)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"CommandError: the database can't be read: ")
    assert done.stderr.count(b"\n") == 1


def test_a_reader_that_has_seen_enough_hears_no_complaint(database: Database) -> None:
    rows.write([ended(number, timestamp=START) for number in range(3000)], "default")
    environ = {**os.environ, "DATABASE_URL": database.url}
    export_all = subprocess.Popen(
        [sys.executable, "manage.py", "export_usage", *DAY],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with export_all:
        assert export_all.stdout is not None
        assert export_all.stderr is not None
        assert export_all.stdout.readline().startswith(b"session_id,")
        export_all.stdout.close()
        assert export_all.stderr.read() == b""
    assert export_all.returncode == 1


def test_rows_are_streamed_while_the_relay_writes(database: Database) -> None:
    """Neither all in memory, nor a lock that keeps the ledger out."""
    rows.write([ended(number, timestamp=START) for number in range(export.ROWS_IN_MEMORY * 2)], "default")
    window = export.Window(START, START + timedelta(days=1))
    chunks = export.stream(export.ended_sessions(window), "jsonl")
    seen = next(chunks).count(b"\n")
    assert seen == export.ROWS_IN_MEMORY
    others = subprocess.run(
        [
            sys.executable,
            "-c",
            "import django; django.setup()\n"
            "from relay.ledger.writing import rows\n"
            "from tests.usage.samples import ended, START\n"
            "rows.write([ended(10**6, timestamp=START)], 'default')",
        ],
        env={**os.environ, "DATABASE_URL": database.url, "DJANGO_SETTINGS_MODULE": "lemcloud.settings"},
        capture_output=True,
        timeout=10,
    )
    assert (others.returncode, others.stderr) == (0, b"")
    seen += sum(chunk.count(b"\n") for chunk in chunks)
    assert seen == export.ROWS_IN_MEMORY * 2


def test_a_terminal_gets_a_progress_bar_and_stdout_only_data(filled: Database) -> None:
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 80))
    environ = {**os.environ, "DATABASE_URL": filled.url}
    command = [sys.executable, "manage.py", "export_usage", *DAY]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=end, timeout=60)
    os.close(end)
    shown = b""
    with suppress(OSError):  # which is how a terminal says that nobody is at its other end
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert done.stdout == CSV.encode()
    assert b"/4 [" in shown
    assert shown.endswith(b"2026-11-04T00:00:00.000Z\r\n")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_month_is_the_window_from_its_first_day_to_the_next_ones(
    filled: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("export_usage", "--month", "2026-11", "--by", "month", "--account", "acme")
    output = capsys.readouterr()
    assert output.out.splitlines()[1].startswith("2026-11,acme,2,")
    assert output.err.endswith("2026-11-01T00:00:00.000Z to 2026-12-01T00:00:00.000Z\n")
    assert str(export.month("2026-12")) == "2026-12-01T00:00:00.000Z to 2027-01-01T00:00:00.000Z"
