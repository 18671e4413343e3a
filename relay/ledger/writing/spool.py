"""The spool: usage records on disk while the database is away, one append-only file for each process.

A line is a record: the CRC-32 of what follows (8 hex digits), whether something ended with it (F or P), the
session's UUID, and the record as JSON. A process holds the lock of its file for as long as it lives, so one
whose lock can be had is a dead one's.
"""

import fcntl
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import UUID

from relay.ledger.records import LegRecord, SessionRecord, merge

SUFFIX = ".spool"

FINAL, PASSING = b"F", b"P"
"""Whether something ended with a record, see `Entry.final`."""

log = logging.getLogger("relay.ledger")


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in the spool; `line_due` if its `session_closed` line is not printed yet."""

    record: SessionRecord
    line_due: bool = False

    @property
    def final(self) -> bool:
        """Whether something ended with it. All else comes again with the next checkpoint."""
        return self.record.closed or any(leg.closed for leg in self.record.legs)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the file a line stands."""

    offset: int
    length: int
    final: bool


class Spool:
    """The file of one process, for one thread. It exists only while there is something in it.

    What `append` says is kept is on the disk. The file never grows over `limit_bytes`: then the records of
    each session become one, those of live sessions give way to ends (they may take half of it), and what
    has no room is not kept.
    """

    def __init__(self, folder: Path, name: str, limit_bytes: int) -> None:
        self.folder = folder
        # Never that of an earlier process, whatever that one was called.
        self.path = folder / f"{name.replace('/', '_')}:{secrets.token_hex(4)}{SUFFIX}"
        self.size = 0
        self._limit = limit_bytes
        self._descriptor: int | None = None
        self._compacted_size = 0

    def append(self, entries: Iterable[Entry]) -> set[UUID]:
        """Write `entries` (at most one a session) to the disk; gives the sessions of those that had room.

        Raises `OSError`; then none of them is kept, and what was there before is.
        """
        lines = [(entry, encode(entry)) for entry in entries]
        lines.sort(key=lambda pair: not pair[0].final)
        fitting = self._fitting(lines)
        if len(fitting) < len(lines):
            self._compact()
            fitting = self._fitting(lines)
        if fitting:
            if self._descriptor is None:
                self._descriptor = self._create()
                self._put_in_place()
            self._write(self._descriptor, b"".join(line for _, line in fitting))
        return {entry.record.session_uuid for entry, _ in fitting}

    def _fitting(self, lines: list[tuple[Entry, bytes]]) -> list[tuple[Entry, bytes]]:
        """Those for which there is room."""
        fitting, size = [], self.size
        for entry, line in lines:
            if size + len(line) <= (self._limit if entry.final else self._limit // 2):
                size += len(line)
                fitting.append((entry, line))
        return fitting

    def entries(self) -> Iterator[Entry]:
        """What is in it, in the order in which it came."""
        if self._descriptor is not None:
            yield from read(self._descriptor, self.path)

    def clear(self) -> None:
        """All that is in it is in the database."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            self.close()
        self.size = self._compacted_size = 0

    @staticmethod
    def _lines_of_sessions(descriptor: int) -> dict[bytes, list[_Place]]:
        """Where the lines of each session are: the file may be too large to hold what is in them."""
        where: dict[bytes, list[_Place]] = {}
        offset = 0
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            for line in file:
                if _is_whole(line):
                    _, kind, session, _ = line.split(b" ", 3)
                    where.setdefault(session, []).append(_Place(offset, len(line), kind == FINAL))
                offset += len(line)
        return where

    @staticmethod
    def _one_line(descriptor: int, places: list[_Place]) -> bytes:
        """What the lines of one session say together."""
        lines = [os.pread(descriptor, place.length, place.offset) for place in places]
        if len(lines) == 1:
            return lines[0]
        return encode(reduce(merge_entries, map(decode, lines)))

    def close(self) -> None:
        """Leave the file to whoever comes next."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    @property
    def _draft(self) -> Path:
        return self.path.with_suffix(".new")

    def _create(self) -> int:
        """A new file, locked before anyone can see it under its name; gives its descriptor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _put_in_place(self) -> None:
        """The file that was created gets its name."""
        self._draft.replace(self.path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, descriptor: int, data: bytes) -> None:
        # Left over from a write that failed half-way, where even that could not be taken back at once.
        os.ftruncate(descriptor, self.size)
        try:
            _write_all(descriptor, data)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, self.size)
            raise
        self.size += len(data)

    def _compact(self) -> None:
        """One record for each session, and only ends where that is still too much.

        Not before the file has doubled since the last time, so that all of this costs little a record.
        """
        if self._descriptor is None or self.size < 2 * self._compacted_size:
            return
        where = self._lines_of_sessions(self._descriptor)
        descriptor = self._create()
        size = 0
        try:
            for final in (True, False):
                for places in where.values():
                    if any(place.final for place in places) is not final:
                        continue
                    line = self._one_line(self._descriptor, places)
                    if final or size + len(line) <= self._limit // 2:
                        size += len(line)
                        _write_all(descriptor, line, force=False)
            os.fsync(descriptor)
            self._put_in_place()
        except BaseException:
            os.close(descriptor)
            self._draft.unlink(missing_ok=True)
            raise
        self.close()
        self._descriptor = descriptor
        self.size = self._compacted_size = size


def node_of(path: Path) -> str:
    """The name of the process whose spool this is."""
    return path.name.removesuffix(SUFFIX).rpartition(":")[0]


def merge_entries(older: Entry, newer: Entry) -> Entry:
    """What is known of a session after `newer` came on top of `older`."""
    return Entry(merge(older.record, newer.record), older.line_due or newer.line_due)


@contextmanager
def abandoned(path: Path) -> Iterator[int | None]:
    """The descriptor of the spool at `path`, locked for the block; None where a living process has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            # Somebody else may have replayed and removed it between the two calls.
            yield descriptor if os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


def spools(folder: Path) -> list[Path]:
    """All there are in `folder`, whoever's."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def encode(entry: Entry) -> bytes:
    """The line of an entry."""
    fields = _plain(entry.record)
    if entry.line_due:
        fields["line_due"] = True
    kind = (FINAL if entry.final else PASSING).decode()
    body = f"{kind} {entry.record.session_uuid} {json.dumps(fields, separators=(',', ':'))}".encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Entry:
    """The entry of a line. Raises `ValueError` for one that isn't whole."""
    if not _is_whole(line):
        raise ValueError("the checksum is wrong")
    values = json.loads(line.split(b" ", 3)[3])
    line_due = values.pop("line_due", False)
    legs = tuple(_record(LegRecord, leg) for leg in values.pop("legs"))
    return Entry(_record(SessionRecord, {**values, "legs": legs}), line_due)


def _is_whole(line: bytes) -> bool:
    checksum, _, body = line.removesuffix(b"\n").partition(b" ")
    return line.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(body)


def read(descriptor: int, path: Path) -> Iterator[Entry]:
    """The entries of an open file. What isn't whole is skipped with a warning, as after a crash."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                entry = decode(line)
            except (ValueError, TypeError, KeyError) as error:
                log.warning("%s: record %d is not whole and is skipped: %s", path, number, error)
            else:
                yield entry


def _plain(record: SessionRecord | LegRecord) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, tuple):
            value = [_plain(item) if isinstance(item, LegRecord) else item for item in value]
        elif isinstance(value, datetime):
            value = value.isoformat()
        elif isinstance(value, UUID):
            value = str(value)
        values[field.name] = value
    return values


def _record(kind: type[Any], values: dict[str, Any]) -> Any:
    """A record out of `_plain`'s form."""
    for name in ("session_uuid", "leg_uuid"):
        if name in values:
            values[name] = UUID(values[name])
    for name in ("started_at", "paired_at", "timestamp", "joined_at", "left_at"):
        if values.get(name):
            values[name] = datetime.fromisoformat(values[name])
    if "traffic" in values:
        values["traffic"] = tuple(map(tuple, values["traffic"]))
    return kind(**values)


def _write_all(descriptor: int, data: bytes, force: bool = True) -> None:
    """Raises `OSError` unless all of it is written and, with `force`, on the disk."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    if force:
        os.fsync(descriptor)
