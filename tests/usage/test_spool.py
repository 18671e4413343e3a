"""The spool: what it says is kept is on the disk, in order, whole, within its bound, and only its own."""

import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.ledger.records import SessionRecord, merge
from relay.ledger.writing import spool as spool_module
from relay.ledger.writing.replay import batches, taken_over
from relay.ledger.writing.spool import Entry, Spool, abandoned, decode, encode, read, spools
from tests.usage.samples import START, ended, leg, live, uuid

MIB = 1024 * 1024


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", "host:1:2", MIB)
    yield made
    made.close()


def of(*records: SessionRecord) -> list[Entry]:
    return [Entry(record) for record in records]


def records(entries: Iterable[Entry]) -> list[SessionRecord]:
    return [entry.record for entry in entries]


def on_disk(folder: Path) -> list[SessionRecord]:
    """What another process would read."""
    found = []
    for path in spools(folder):
        descriptor = os.open(path, os.O_RDONLY)
        found += records(read(descriptor, path))
        os.close(descriptor)
    return found


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A full disk: no file of this process grows over `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


texts = st.text(max_size=30)
counts = st.integers(0, 2**63 - 1)


@given(session_id=texts, account=st.none() | texts, count=counts, close_reason=texts, due=st.booleans())
def test_a_record_comes_back_as_it_was(session_id, account, count, close_reason, due):
    legs = (leg(1, left_at=START, close_reason=close_reason, bytes_received=count, close_code=1000), leg(2))
    record = ended(
        session_id=session_id, account_id=account, bytes_client_to_server=count, legs=legs, paired_at=START
    )
    assert decode(encode(Entry(record, due))) == Entry(record, due)
    assert decode(encode(Entry(live(2, owned=False)))) == Entry(live(2, owned=False))


def test_what_is_kept_is_on_the_disk_in_order(spool):
    first, second = live(1), ended(1, legs=(leg(1, left_at=START),))
    assert spool.append(of(first, live(2))) == {uuid(1), uuid(2)}
    assert spool.append(of(second)) == {uuid(1)}
    assert on_disk(spool.folder) == records(spool.entries()) == [first, live(2), second]


def test_it_is_a_file_only_while_there_is_something_in_it(spool):
    assert not spools(spool.folder)
    spool.append(of(live()))
    assert spool.path.stat().st_mode & 0o777 == 0o600
    spool.clear()
    assert spool.size == 0
    assert not list(spool.folder.iterdir())
    spool.append(of(ended()))
    assert on_disk(spool.folder) == [ended()]


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_torn_last_record_is_skipped_with_a_warning(spool, cut, caplog):
    spool.append(of(ended(1), ended(2), ended(3)))
    os.truncate(spool.path, spool.size - cut)
    with caplog.at_level(logging.WARNING, "relay.ledger"):
        assert on_disk(spool.folder) == [ended(1), ended(2)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "record 3" in caplog.text


@settings(max_examples=50)
@given(st.data())
def test_damage_to_one_record_costs_no_other_one(tmp_path_factory, data):
    spool = Spool(tmp_path_factory.mktemp("spool"), "x", MIB)
    spool.append(of(ended(1), ended(2), ended(3)))
    content = bytearray(spool.path.read_bytes())
    lines = bytes(content).splitlines(keepends=True)
    begin = len(lines[0])
    # Not its newline, without which the next one would be part of it.
    position = data.draw(st.integers(begin, begin + len(lines[1]) - 2))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (content[position], 10)))
    content[position] = other
    spool.path.write_bytes(content)
    assert on_disk(spool.folder) == [ended(1), ended(3)]
    spool.close()


def test_on_a_full_disk_nothing_is_kept_that_it_says_is_not_and_all_else_stays(spool):
    spool.append(of(ended(1), ended(2)))
    for _ in range(2):
        with largest_file(spool.size + 100), pytest.raises(OSError, match="File too large"):
            spool.append(of(ended(3)))
        assert spool.path.stat().st_size == spool.size  # not even a half-written line
        assert on_disk(spool.folder) == [ended(1), ended(2)]
    assert spool.append(of(ended(3))) == {uuid(3)}
    assert on_disk(spool.folder) == [ended(1), ended(2), ended(3)]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        Spool(tmp_path / "file" / "spool", "x", MIB).append(of(live()))


def test_it_never_grows_over_its_bound_and_ends_take_the_place_of_checkpoints(tmp_path):
    limit = 20_000
    spool = Spool(tmp_path, "x", limit)
    kept: set[UUID] = set()
    for number in range(100):
        spool.append(of(*(live(n, bytes_client_to_server=number) for n in range(1000, 1010))))
        kept |= spool.append(of(ended(number)))
        assert spool.path.stat().st_size == spool.size <= limit
    known = {record.session_uuid for record in on_disk(tmp_path) if record.closed}
    assert known == kept
    size_of_end = len(encode(Entry(ended(10))))
    assert len(kept) >= limit // size_of_end - 1
    spool.close()


def test_many_checkpoints_of_a_session_become_one_record_when_room_is_needed(tmp_path):
    spool = Spool(tmp_path, "x", 20_000)
    for number in range(1000):
        record = live(number % 5, bytes_client_to_server=number, legs=(leg(number % 5),))
        assert spool.append(of(record)) == {uuid(number % 5)}
    newest: dict[UUID, SessionRecord] = {}
    for record in on_disk(tmp_path):
        newest[record.session_uuid] = merge(newest.get(record.session_uuid), record)
    assert sorted(r.bytes_client_to_server for r in newest.values()) == [995, 996, 997, 998, 999]
    spool.close()


def test_only_a_dead_processs_spool_can_be_taken_over(spool, tmp_path):
    spool.append(of(ended()))
    with taken_over(spool.path) as entries:
        assert entries is None
    assert spool.path.exists()
    spool.close()
    with taken_over(spool.path) as entries, taken_over(spool.path) as entries_of_another:
        assert entries_of_another is None
        assert records(entries) == [ended()]
    assert not spool.path.exists()
    with taken_over(spool.path) as entries:
        assert entries is None


def test_a_spool_that_was_not_wholly_replayed_stays(spool):
    spool.append(of(ended()))
    spool.close()

    def replay() -> None:
        with taken_over(spool.path) as entries:
            assert list(entries)
            raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError):
        replay()
    assert on_disk(spool.folder) == [ended()]


def test_what_a_killed_process_was_told_is_kept_is_there(tmp_path):
    code = (
        "import django, sys; django.setup()\n"
        "from pathlib import Path\n"
        "from relay.ledger.writing.spool import Entry, Spool\n"
        "from tests.usage.samples import ended\n"
        "spool = Spool(Path(sys.argv[1]), 'victim', 10**9)\n"
        "for number in range(10**6):\n"
        "    spool.append([Entry(ended(number))]); print(number, flush=True)\n"
    )
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "lemcloud.settings", "RELAY_VAR_DIR": str(tmp_path)}
    folder = tmp_path / "spool"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environ, stdout=-1) as process:
        assert process.stdout is not None
        for _ in range(50):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = 50 + len(process.stdout.readlines())
    (path,) = spools(folder)
    with taken_over(path) as entries:
        assert records(entries)[:told] == [ended(number) for number in range(told)]


class Disk:
    """What is asked of the disk, in order: `write`, `fsync` and `replace`, of files and of the folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.asked: list[str] = []
        self._folder = folder
        for name in ("write", "fsync"):
            monkeypatch.setattr(os, name, self._noting(name, getattr(os, name)))
        replace = Path.replace

        def noted_replace(path: Path, target: Path) -> Path:
            self.asked.append("replace")
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", noted_replace)

    def _noting(self, name: str, call: Any) -> Any:
        def noted(descriptor: int, *arguments: Any) -> Any:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path == self._folder:
                self.asked.append(f"{name} the folder")
            elif path.parent == self._folder:
                self.asked.append(f"{name} the file")
            return call(descriptor, *arguments)

        return noted


def test_a_line_that_is_kept_was_forced_to_the_disk_and_so_was_the_name_of_its_file(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut would take what `append` has said is kept."""
    disk = Disk(monkeypatch, spool.folder)
    spool.append(of(ended(1)))
    assert disk.asked == ["replace", "fsync the folder", "write the file", "fsync the file"]
    del disk.asked[:]
    for number in (2, 3):
        spool.append(of(ended(number)))
    assert disk.asked == ["write the file", "fsync the file"] * 2


def test_the_records_that_became_one_are_on_the_disk_before_they_take_the_place_of_the_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "x", 2 * len(encode(Entry(ended(1)))) + 10)
    spool.append(of(live(1)))
    spool.append(of(ended(1)))
    disk = Disk(monkeypatch, tmp_path)
    assert spool.append(of(ended(2))) == {uuid(2)}
    assert disk.asked == [
        *("write the file", "fsync the file", "replace", "fsync the folder"),
        *("write the file", "fsync the file"),
    ]
    assert on_disk(tmp_path) == [ended(1), ended(2)]
    spool.close()


def test_a_half_written_line_that_could_not_be_taken_back_is_taken_back_by_the_next_write(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the next record would be the second half of a line that isn't whole, and lost with it."""
    spool.append(of(ended(1)))

    def fail(descriptor: int, length: int) -> None:
        if length < os.fstat(descriptor).st_size:
            raise OSError("the disk is away")

    with monkeypatch.context() as patch, largest_file(spool.size + 100):
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="File too large"):
            spool.append(of(ended(2)))
    assert spool.path.stat().st_size == spool.size + 100
    spool.append(of(ended(3)))
    assert on_disk(spool.folder) == [ended(1), ended(3)]
    assert not caplog.records


def test_what_live_sessions_had_in_the_spool_gives_way_to_ends(tmp_path: Path) -> None:
    """Ends may have all of it, live sessions half, whichever came first."""
    size_of_live, size_of_end = len(encode(Entry(live(1)))), len(encode(Entry(ended(1))))
    spool = Spool(tmp_path, "x", 10 * size_of_end)
    kept = spool.append(of(*map(live, range(1, 100))))
    assert 0 < len(kept) * size_of_live <= 5 * size_of_end
    for number in range(1001, 1010):
        assert spool.append(of(ended(number))) == {uuid(number)}
    found = on_disk(tmp_path)
    assert [record for record in found if record.closed] == list(map(ended, range(1001, 1010)))
    spool.close()


def test_of_what_comes_at_once_ends_have_room_before_live_sessions(tmp_path: Path) -> None:
    live_one, end = len(encode(Entry(live(1)))), len(encode(Entry(ended(9))))
    spool = Spool(tmp_path, "x", live_one + end - 1)
    assert live_one < (live_one + end - 1) // 2  # alone, it would have room
    assert spool.append(of(live(1), ended(9))) == {uuid(9)}
    assert on_disk(tmp_path) == [ended(9)]
    spool.close()


def test_when_many_become_one_ends_stay_before_live_sessions(tmp_path: Path) -> None:
    size_of_end = len(encode(Entry(ended(1001))))
    spool = Spool(tmp_path, "x", 5 * size_of_end)
    spool.append(of(*map(live, range(1, 5))))
    for number in range(1001, 1006):
        assert spool.append(of(ended(number))) == {uuid(number)}
    assert on_disk(tmp_path) == list(map(ended, range(1001, 1006)))
    spool.close()


def test_a_leg_that_left_a_live_session_counts_as_an_end(tmp_path: Path) -> None:
    """The next checkpoint has it no more: its process has forgotten the leg."""
    record = live(1, legs=(leg(1, left_at=START, close_code=1000),))
    spool = Spool(tmp_path, "x", len(encode(Entry(record))) + 10)
    assert spool.append(of(live(2), record)) == {uuid(1)}
    spool.close()


def test_making_many_records_one_is_put_off_until_the_file_has_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full spool would else be read and written anew for each record that has no room."""
    spool = Spool(tmp_path, "x", 10_000)
    made: list[int] = []
    create = Spool._create
    monkeypatch.setattr(Spool, "_create", lambda spool: made.append(1) or create(spool))
    for number in range(200):
        spool.append(of(ended(number)))
    assert len(made) <= 2
    spool.close()


def test_a_line_that_was_due_is_still_due_of_the_record_that_many_became(tmp_path: Path) -> None:
    first = Entry(ended(1, legs=(leg(1),)), line_due=True)
    later = Entry(ended(1, legs=(leg(1, left_at=START),)))
    [[both]] = batches([first, later])
    assert both == Entry(later.record, line_due=True)


def test_a_damaged_line_is_left_out_when_many_become_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "x", 3 * len(encode(Entry(ended(1)))))
    spool.append(of(ended(1), ended(2)))
    content = spool.path.read_bytes().replace(b"acme", b"evil", 1)
    descriptor = os.open(spool.path, os.O_WRONLY)
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)
    for number in (3, 4):
        assert spool.append(of(ended(number))) == {uuid(number)}
    assert on_disk(tmp_path) == [ended(2), ended(3), ended(4)]
    assert b"evil" not in spool.path.read_bytes()
    spool.close()


def test_where_there_is_no_room_to_make_many_one_all_stays_and_no_draft_is_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "x", 2 * len(encode(Entry(ended(1)))) + 10)
    spool.append(of(live(1)))
    spool.append(of(ended(1)))
    with largest_file(10), pytest.raises(OSError, match="File too large"):
        spool.append(of(ended(2)))
    assert on_disk(tmp_path) == [live(1), ended(1)]
    assert list(tmp_path.iterdir()) == [spool.path]
    spool.close()


def test_two_spools_of_one_process_are_two_files(tmp_path: Path) -> None:
    """At its end a process whose writer hangs makes a second one, beside the first."""
    one, other = (Spool(tmp_path, "host:1:2", MIB) for _ in range(2))
    one.append(of(ended(1)))
    other.append(of(ended(2)))
    assert sorted(r.session_id for r in on_disk(tmp_path)) == ["session-1", "session-2"]
    assert {spool_module.node_of(path) for path in spools(tmp_path)} == {"host:1:2"}
    one.close()
    other.close()


def test_a_spool_that_another_has_just_replayed_and_removed_is_nobodys(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening it and having its lock: what is in it is in the database already."""
    spool.append(of(ended()))
    spool.close()
    lock = spool_module.fcntl.flock

    def removed_first(descriptor: int, operation: int) -> None:
        spool.path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(spool_module.fcntl, "flock", removed_first)
    with abandoned(spool.path) as descriptor:
        assert descriptor is None


def test_of_a_session_with_several_records_the_newest_is_written_and_no_end_is_lost(tmp_path: Path) -> None:
    older, newer = live(1, bytes_client_to_server=1), live(1, bytes_client_to_server=2)
    assert list(batches(of(older, newer))) == [of(newer)]
    assert list(batches(of(older, ended(1), newer))) == [of(ended(1))]
