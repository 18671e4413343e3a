"""Where received files go: under plain names, beside each other, and over nothing that is there already."""

import contextlib
import errno
import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAX_NAME_BYTES: Final = 180
"""Of a name: most file systems allow 255, of which the unfinished file's affixes need 27."""

NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system without hard links says, as memory cards have it."""


class TransferRefused(Exception):
    """A file can't be sent or taken; the message says which and why."""


def safe_name(name: object) -> str:
    """`name` where it is a plain file name on every system; raises `TransferRefused` where it isn't."""
    plain = (
        isinstance(name, str)
        and name == name.strip()
        and not name.startswith(".")  # neither a parent folder nor a hidden file
        and not any(
            c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name
        )
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
    )
    if not plain:
        raise TransferRefused(f"{name!r} is not a name that files are taken under")
    return str(name)


def exists(name: str) -> TransferRefused:
    """What to raise where a file of that name is there."""
    return TransferRefused(f"{name} exists already, and nothing is overwritten")


class Unfinished:
    """`.NAME.SIZE.part`: what has come of a file. Only when all of it is there and right it gets its name.

    Raises `TransferRefused` where the disk has no room for the rest, or someone else is receiving it, and
    `OSError`.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self._name = name
        self._final, self._path = folder / name, folder / f".{name}.{size}.part"
        have = self._path.lstat().st_size if self._path.exists() else 0
        free = shutil.disk_usage(folder).free
        if size - have > free:
            raise TransferRefused(f"{name} has {size} bytes, and the disk has room for {free}")
        # Whoever else may write here must not lead us elsewhere by a link.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._path, flags, 0o666), "r+b")
        self._hash = hashlib.sha256()
        try:
            _hold(self._file.fileno(), name)
            if self._file.seek(0, os.SEEK_END) > size:
                self._file.truncate(0)
            self._file.seek(0)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of all that is there, in hexadecimal."""
        return self._hash.hexdigest()

    def read(self) -> int:
        """Go through what an earlier try left, once; gives how many bytes that is."""
        self._hash = hashlib.file_digest(self._file, "sha256")
        return self._file.tell()

    def clear(self) -> None:
        """Begin at the beginning."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()

    def append(self, pieces: Iterable[memoryview]) -> None:
        """The next bytes of the file."""
        for piece in pieces:
            self._file.write(piece)
            self._hash.update(piece)

    def finish(self, sha256: object) -> Path:
        """Give the file its name where it has this SHA-256; otherwise delete it, with `TransferRefused`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self.sha256 != sha256:
            self._path.unlink()
            raise TransferRefused(
                f"{self._name} came over damaged (its SHA-256 is another); what came is deleted"
            )
        try:
            publish(self._path, self._final)
        except FileExistsError:
            raise exists(self._name) from None
        return self._final


def publish(draft: Path, target: Path) -> None:
    """Give a finished file its name. Raises `FileExistsError` where that is taken: nothing is replaced."""
    try:
        os.link(draft, target)  # unlike a rename, which replaces what came to be there meanwhile
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # so that the name is ours
        draft.replace(target)
    else:
        draft.unlink()


def _hold(file: int, name: str) -> None:
    """For this process alone, for as long as it's open: two that write to one file would mix it up."""
    with contextlib.suppress(ImportError):  # not on Windows, which asks for other means
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferRefused(
                f"{name} is just being received by someone else, into the same folder"
            ) from None
