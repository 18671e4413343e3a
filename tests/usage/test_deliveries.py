"""`export_usage --new`: each session goes to each destination once, wherever a run is killed."""

import hashlib
import os
import random
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections

from relay.ledger.exports import deliveries, drafts
from relay.ledger.writing import rows
from relay.models import ExportedSession, UsageExport
from tests.databases import Database
from tests.usage.samples import START, ended, live

KILLED = -signal.SIGKILL


def fill(first: int, last: int) -> None:
    rows.write([ended(number) for number in range(first, last + 1)], "default")


def export_new(output: Path, *args: str, destination: str = "billing") -> None:
    call_command(
        "export_usage",
        "--new",
        "--destination",
        destination,
        "--output",
        str(output),
        "--format",
        "jsonl",
        *args,
    )


def sessions_in(*paths: Path) -> list[int]:
    """The numbers of the sessions in the files, in their order."""
    lines = "".join(path.read_text() for path in paths).splitlines()
    return [int(line.split('"session-')[1].split('"')[0]) for line in lines]


def in_a_process(work: Callable[[], object]) -> int:
    """`work` in a process of its own with its own connections; gives its exit status, or minus the signal."""
    connections.close_all()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on as a second test run
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(step: int, work: Callable[[], object]) -> int:
    """`work`, killed when it comes to the `step`th line of the code that delivers."""
    files = {deliveries.__file__, drafts.__file__}
    left = step

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def traced() -> None:
        sys.settrace(trace)
        work()

    return in_a_process(traced)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert not list(tmp_path.glob(".*")), "a draft was left behind"


def test_what_is_new_goes_out_once_to_each_destination(database: Database, folder: Path) -> None:
    fill(1, 3)
    rows.write([live(50)], "default")
    export_new(folder / "1")
    fill(4, 5)
    rows.write([ended(50, timestamp=START)], "default")  # with an end before those that went out already
    export_new(folder / "2")
    export_new(folder / "3")
    export_new(folder / "all", destination="audit")
    assert sessions_in(folder / "1") == [1, 2, 3]
    assert sessions_in(folder / "2") == [50, 4, 5]
    assert (folder / "3").read_bytes() == b""
    assert sessions_in(folder / "all") == [50, 1, 2, 3, 4, 5]


def test_a_window_and_an_account_leave_the_rest_for_later(database: Database, folder: Path) -> None:
    fill(1, 3)
    rows.write([ended(4, account_id="other")], "default")
    export_new(folder / "1", "--to", str(START + timedelta(seconds=2)))
    export_new(folder / "2", "--account", "acme")
    export_new(folder / "3")
    found = [sessions_in(folder / name) for name in ("1", "2", "3")]
    assert found == [[1], [2, 3], [4]]


def test_the_record_of_an_export_says_what_it_was(database: Database, folder: Path) -> None:
    fill(1, 2)
    rows.write([ended(3, account_id=None)], "default")
    export_new(folder / "1", "--from", "2026-11-01", "--to", "2026-12-01")
    made = UsageExport.objects.get()
    data = (folder / "1").read_bytes()
    assert made.digest == hashlib.sha256(data).hexdigest()
    assert (made.sessions, made.rows, made.accounts, made.total_bytes) == (3, 3, 1, 3001 + 3002 + 3003)
    assert (made.destination, made.format, made.file_bytes) == ("billing", "jsonl", len(data))
    assert made.output == str(folder / "1")
    assert made.made_by.endswith(f"@{os.uname().nodename}")
    assert made.delivered_at is not None
    assert str(made.window_start) == "2026-11-01 00:00:00+00:00"


def test_a_new_export_replaces_no_file_and_leaves_its_sessions_for_the_next(
    database: Database, folder: Path
) -> None:
    fill(1, 1)
    (folder / "1").write_text("not taken yet")
    with pytest.raises(CommandError, match="it is there already") as error:
        export_new(folder / "1")
    assert error.value.returncode == 2
    assert (folder / "1").read_text() == "not taken yet"
    export_new(folder / "2")
    assert sessions_in(folder / "2") == [1]


@pytest.mark.parametrize("same_name", [True, False], ids=["same name", "a name for each run"])
def test_killed_at_any_line_and_run_again_there_is_no_hole_and_no_double(
    database: Database, folder: Path, same_name: bool
) -> None:
    """At the lines of the code that makes, records and places the file, in turn, until a run gets through.

    Every fourth line here; another fourth on the other database and with the other way to name files.
    """
    step, number = 2 * same_name + (database.vendor == "sqlite"), 0
    while True:
        number += 1
        fill(number, number)
        first = folder / f"{step}"
        again = first if same_name else folder / f"{step}-again"
        status = killed_at(step, partial(export_new, first))
        if status == 0:
            break
        assert status == KILLED
        complete = UsageExport.objects.filter(output=first, delivered_at__isnull=False).exists()
        # A file that is there and recorded as delivered may not have been taken yet.
        taken = pytest.raises(CommandError, match="it is there already")
        with taken if complete and same_name else nullcontext():
            export_new(again)
        found = [path for path in (first, again) if path.exists()]
        assert sessions_in(*dict.fromkeys(found)) == [number], f"killed at line {step}"
        drafts.sweep(first)  # with a name for each run, none comes that would do it
        step += 4
    assert step > 80  # all of it was stepped through
    _all_is_recorded_as_it_is(number)


def test_killed_at_random_moments_there_is_no_hole_and_no_double(database: Database, folder: Path) -> None:
    chosen = random.Random(20)
    rounds, each = 12, 300
    for round_ in range(rounds):
        fill(round_ * each + 1, (round_ + 1) * each)
        moment = chosen.uniform(0.002, 0.08)

        def killed(moment: float = moment, output: Path = folder / str(round_)) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process there and then
            signal.setitimer(signal.ITIMER_REAL, moment)
            export_new(output)

        assert in_a_process(killed) in (0, -signal.SIGALRM)
    export_new(folder / "last")
    for round_ in range(rounds):
        drafts.sweep(folder / str(round_))
    assert sorted(sessions_in(*folder.iterdir())) == list(range(1, rounds * each + 1))
    _all_is_recorded_as_it_is(rounds * each)


def test_the_same_bytes_are_made_again_when_the_draft_is_gone(database: Database, folder: Path) -> None:
    """As when the run's container went with its disk after it had recorded the export."""
    fill(1, 3)
    export_new(folder / "1")
    before = (folder / "1").read_bytes()
    (folder / "1").unlink()
    UsageExport.objects.update(delivered_at=None)
    fill(4, 4)
    export_new(folder / "2")
    assert (folder / "1").read_bytes() == before
    assert sessions_in(folder / "2") == [4]


def test_an_unfinished_export_goes_elsewhere_when_its_folder_is_gone(
    database: Database, folder: Path
) -> None:
    fill(1, 3)
    export_new(folder / "1")
    (folder / "1").unlink()
    UsageExport.objects.update(delivered_at=None, output=str(folder / "gone" / "1"))
    export_new(folder / "2")
    assert sessions_in(folder / "2") == [1, 2, 3]
    assert UsageExport.objects.get().output == str(folder / "2")


def test_another_file_in_the_place_of_a_recorded_one_is_said(database: Database, folder: Path) -> None:
    fill(1, 3)
    export_new(folder / "1")
    UsageExport.objects.update(delivered_at=None)
    (folder / "1").write_text("something else")
    for name in ("1", "2"):
        with pytest.raises(CommandError, match=f"can't write {folder}/1: another file is there"):
            export_new(folder / name)
    (folder / "1").unlink()
    export_new(folder / "1")
    assert sessions_in(folder / "1") == [1, 2, 3]


def test_of_two_runs_at_once_one_exports_and_the_other_says_so(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second runs from start to end while the first has its draft and not yet its record."""
    fill(1, 3)
    settle = drafts.Draft.settle
    second: list[int] = []

    def settle_later(draft: drafts.Draft, mode: int | None = None) -> None:
        settle(draft, mode)
        if not second:
            second.append(0)
            other = threading.Thread(target=lambda: _in_own_connection(lambda: export_new(folder / "2")))
            other.start()
            other.join()

    monkeypatch.setattr(drafts.Draft, "settle", settle_later)
    with pytest.raises(CommandError, match="another run for billing") as error:
        export_new(folder / "1")
    assert error.value.returncode == 1
    assert sessions_in(folder / "2") == [1, 2, 3]
    assert not (folder / "1").exists()
    assert UsageExport.objects.count() == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_disk_that_is_full_leaves_neither_a_file_nor_a_record(database: Database, folder: Path) -> None:
    fill(1, 1000)

    def without_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(CommandError, match=f"--output: can't write {folder}/1: File too large") as error:
            export_new(folder / "1")
        assert error.value.returncode == 2

    assert in_a_process(without_room) == 0
    assert list(folder.iterdir()) == []
    assert not UsageExport.objects.exists()
    export_new(folder / "1")
    assert sessions_in(folder / "1") == list(range(1, 1001))


def test_the_relay_writes_on_while_an_export_is_made(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends meanwhile is in the next one."""
    fill(1, 3)
    settle, wrote = drafts.Draft.settle, threading.Event()

    def write_first(draft: drafts.Draft, mode: int | None = None) -> None:
        def write() -> None:
            fill(4, 4)
            wrote.set()

        other = threading.Thread(target=lambda: _in_own_connection(write))
        other.start()
        other.join(10)
        settle(draft, mode)

    with monkeypatch.context() as patch:
        patch.setattr(drafts.Draft, "settle", write_first)
        export_new(folder / "1")
    assert wrote.is_set()
    export_new(folder / "2")
    assert [sessions_in(folder / "1"), sessions_in(folder / "2")] == [[1, 2, 3], [4]]


def test_a_run_that_is_just_placing_its_file_is_left_to_it(database: Database, folder: Path) -> None:
    fill(1, 3)
    export_new(folder / "1")
    (folder / "1").unlink()
    made = UsageExport.objects.get()
    UsageExport.objects.update(delivered_at=None)
    with (
        drafts.Draft(folder / "1", made.export_uuid.hex),
        pytest.raises(CommandError, match="another run for billing is just putting its file") as error,
    ):
        export_new(folder / "2")
    assert error.value.returncode == 1
    assert not (folder / "2").exists()
    assert UsageExport.objects.get().delivered_at is None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_export_is_on_the_disk_before_it_is_recorded_and_recorded_before_it_has_its_name(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step rests on the one before it: whatever comes between two of them, the next run can finish."""
    order: list[str] = []

    def noting(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            order.append(name.strip("_"))
            return original(*args, **options)

        monkeypatch.setattr(owner, name, noted)

    noting(drafts.Draft, "settle")
    noting(deliveries, "_record")
    noting(drafts.Draft, "publish")
    noting(deliveries, "_delivered")
    fill(1, 2)
    export_new(folder / "1")
    assert order == ["settle", "record", "publish", "delivered"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_where_the_answer_to_the_record_gets_lost_the_file_is_there_for_the_next_run(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not made again: other versions of a library may make other bytes of the same rows."""
    record = deliveries._record

    def lost(*args: Any) -> Any:
        record(*args)
        raise OperationalError("the connection is lost")

    fill(1, 3)
    with monkeypatch.context() as patch:
        patch.setattr(deliveries, "_record", lost)
        with pytest.raises(CommandError, match="the connection is lost"):
            export_new(folder / "1")
    monkeypatch.setattr(deliveries, "_make_again", None)
    export_new(folder / "1")
    assert sessions_in(folder / "1") == [1, 2, 3]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_run_sweeps_away_what_killed_ones_left_beside_its_file(database: Database, folder: Path) -> None:
    fill(1, 1)
    drafts.draft_of(folder / "1", "killed").write_text("half")
    export_new(folder / "1")
    assert [path.name for path in folder.iterdir()] == ["1"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_draft_that_is_damaged_is_made_again(database: Database, folder: Path) -> None:
    fill(1, 3)
    export_new(folder / "1")
    whole = (folder / "1").read_bytes()
    (folder / "1").unlink()
    made = UsageExport.objects.get()
    drafts.draft_of(folder / "1", made.export_uuid.hex).write_bytes(whole[:-10])
    UsageExport.objects.update(delivered_at=None)
    export_new(folder / "1")
    assert (folder / "1").read_bytes() == whole


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_export_that_was_made_again_as_other_bytes_has_their_digest(
    database: Database, folder: Path
) -> None:
    """As by another version of the library that writes Parquet."""
    fill(1, 3)
    export_new(folder / "1")
    (folder / "1").unlink()
    UsageExport.objects.update(delivered_at=None, digest="0" * 64, file_bytes=0)
    export_new(folder / "1")
    _all_is_recorded_as_it_is(3)
    assert UsageExport.objects.get().file_bytes == (folder / "1").stat().st_size


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--new", "--output", "x"), "go together"),
        (("--destination", "a", "--output", "x", "--month", "2026-11"), "go together"),
        (("--new", "--destination", "a"), "expected --output with a file"),
        (("--new", "--destination", "a b", "--output", "x"), "--destination: expected 1 to 64 of"),
        (("--new", "--destination", "a", "--output", "x", "--by", "day"), "expected --by session"),
        (("--new", "--destination", "a", "--output", "/nowhere/x"), "can't write /nowhere/x: No such file"),
        (("--new", "--destination", "a", "--output", "/dev/null"), "it is there already"),
    ],
)
def test_what_the_caller_can_mend_is_status_2(database: Database, args: tuple[str, ...], says: str) -> None:
    with pytest.raises(CommandError, match=says) as error:
        call_command("export_usage", *args)
    assert error.value.returncode == 2
    assert not UsageExport.objects.exists()


def _in_own_connection(work: Callable[[], object]) -> None:
    try:
        work()
    finally:
        connections.close_all()


def _all_is_recorded_as_it_is(sessions: int) -> None:
    assert ExportedSession.objects.count() == sessions
    for made in UsageExport.objects.all():
        data = Path(made.output).read_bytes()
        assert made.digest == hashlib.sha256(data).hexdigest()
        assert made.delivered_at is not None
        assert made.rows == data.count(b"\n")
