"""Received files and keys get their names on any file system, and never replace anything."""

import errno
import os
import stat
from hashlib import sha256
from pathlib import Path

import pytest

from relay.client.disk import TransferRefused, Unfinished
from relay.client.peers import own_key

CONTENT = b"what it says"


@pytest.fixture(params=["links", "no links"], autouse=True)
def _links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory cards and some network file systems have no hard links."""

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param == "no links":
        monkeypatch.setattr(os, "link", link)


def finish(part: Unfinished) -> Path:
    part.append([memoryview(CONTENT)])
    return part.finish(sha256(CONTENT).hexdigest())


def test_a_whole_file_gets_its_name(tmp_path: Path) -> None:
    with Unfinished(tmp_path, "notes", len(CONTENT)) as part:
        final = finish(part)
    assert final.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [final]


def test_a_file_that_came_to_be_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with Unfinished(tmp_path, "notes", len(CONTENT)) as part:
        (tmp_path / "notes").write_bytes(b"somebody else's")
        with pytest.raises(TransferRefused, match="notes exists already"):
            finish(part)
    assert (tmp_path / "notes").read_bytes() == b"somebody else's"
    assert (tmp_path / f".notes.{len(CONTENT)}.part").read_bytes() == CONTENT


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key.pem"
    made = own_key(path)
    assert own_key(path).private_bytes_raw() == made.private_bytes_raw()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
