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
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.ledger.records import SessionRecord, merge
from relay.ledger.replay import taken_over
from relay.ledger.spool import Entry, Spool, decode, encode, read, spools
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
        "from relay.ledger.spool import Entry, Spool\n"
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
