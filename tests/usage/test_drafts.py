"""Files that appear whole or not at all, on any file system, and what killed processes leave of them."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from relay.ledger.exports import drafts


def write(target: Path, text: str, *, replace: bool) -> None:
    with drafts.Draft(target, "1") as draft:
        draft.write(text.encode())
        draft.settle()
        draft.publish(replace=replace)


@pytest.fixture(params=["links", "no links"])
def _links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of file systems: some network ones, and those of memory cards, have no hard links."""

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param == "no links":
        monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("_links")
def test_a_new_file_appears_and_no_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write(target, "first", replace=False)
    with pytest.raises(FileExistsError):
        write(target, "second", replace=False)
    assert target.read_text() == "first"
    write(target, "third", replace=True)
    assert target.read_text() == "third"
    assert list(tmp_path.iterdir()) == [target]


def test_a_sweep_takes_what_nobody_holds_and_leaves_the_rest(tmp_path: Path) -> None:
    target, other = tmp_path / "file[1]", tmp_path / "file1"
    for path in (target, other):
        drafts.draft_of(path, "dead").write_text("left by a killed process")
    with drafts.Draft(target, "alive") as draft:
        drafts.sweep(target)
        assert drafts.is_held(draft.path)
        assert sorted(tmp_path.iterdir()) == sorted([draft.path, drafts.draft_of(other, "dead")])


def test_a_draft_that_a_sweep_takes_at_once_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep may come between the making of the file and the lock that says whose it is."""
    lock, swept = fcntl.flock, []

    def sweep_first(file: Any, operation: int) -> None:
        if not swept:
            swept.append(True)
            drafts.draft_of(tmp_path / "file", "1").unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    write(tmp_path / "file", "whole", replace=False)
    assert swept
    assert (tmp_path / "file").read_text() == "whole"


def test_a_draft_is_whole_when_it_is_settled(tmp_path: Path) -> None:
    """What is recorded of it, and what another run may publish, is what is on the disk then."""
    with drafts.Draft(tmp_path / "file", "1") as draft:
        draft.write(b"whole")
        draft.settle(0o640)
        assert draft.path.read_bytes() == b"whole"
        assert draft.path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("replaces", [True, False])
def test_a_draft_and_its_names_are_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    """A power cut leaves the old name or the new one, and behind each a whole file."""
    done: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        what = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append((what.name, sorted(path.name for path in tmp_path.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write(tmp_path / "file", "whole", replace=replaces)
    draft = drafts.draft_of(tmp_path / "file", "1").name
    assert done == [
        (draft, [draft]),
        (tmp_path.name, [draft]),
        (tmp_path.name, ["file"]),
    ]
