"""A file that appears whole or not at all: written beside its place, forced to disk, then given its name."""

import errno
import fcntl
import glob
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system without hard links says."""


class Draft:
    """The file `target` in the making, under a name with `token` in the same folder. Raises `OSError`.

    A context manager: what was not published is removed at the end of the block, unless it was kept. A
    process that is killed leaves its draft behind; `sweep` removes those that no living process holds.
    """

    def __init__(self, target: Path, token: str) -> None:
        self.target = target
        self.path = draft_of(target, token)
        self._keep = False
        while True:
            self._file = self.path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                    return
            self._file.close()  # somebody's sweep took it, between the two lines

    def __enter__(self) -> "Draft":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._keep:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def settle(self, mode: int | None = None) -> None:
        """It is whole: force its bytes and its own name to disk, with `mode` if that is given."""
        self._file.flush()
        if mode is not None:
            os.fchmod(self._file.fileno(), mode)
        os.fsync(self._file.fileno())
        sync_folder(self.path.parent)

    def keep(self, keep: bool = True) -> None:
        """Whether a record may say that it is there, so that it has to stay until it is published."""
        self._keep = keep

    def publish(self, *, replace: bool) -> None:
        """Give it its name. Raises `FileExistsError` where that is taken and not to be replaced."""
        publish(self.path, self.target, replace=replace)


def draft_of(target: Path, token: str) -> Path:
    """Where the draft of `target` with `token` is."""
    return target.with_name(f".{target.name}.{token}.partial")


def publish(draft: Path, target: Path, *, replace: bool) -> None:
    """As `Draft.publish`, for the draft of a process that is no more."""
    if replace:
        draft.replace(target)
    else:
        try:
            os.link(draft, target)  # which never replaces
            draft.unlink()
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            draft.rename(target)
    sync_folder(target.parent)


def is_held(draft: Path) -> bool:
    """Whether a living process of this machine is writing or publishing `draft`."""
    try:
        with draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def sweep(target: Path) -> None:
    """Remove the drafts of `target` that killed processes left."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if not is_held(path):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
