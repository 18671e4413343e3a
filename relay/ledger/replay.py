"""From the spool to the database: in order, in batches, and as often as you like."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from django.db import DataError, IntegrityError

from relay.ledger import nodes, rows
from relay.ledger.records import SessionRecord
from relay.ledger.spool import Entry, abandoned, merge_entries, read, spools

BATCH = 2000
"""Records in one transaction: enough that it isn't the transaction that costs, and a few MB of memory."""

UNSTORABLE = (DataError, IntegrityError, ValueError, TypeError, OverflowError)
"""Errors of a record rather than of the database: no later attempt would succeed."""

log = logging.getLogger("relay.ledger")


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """`entries` in batches, in order, each with one at most of each session."""
    source = iter(entries)
    while some := list(islice(source, BATCH)):
        batch: dict[object, Entry] = {}
        for entry in some:
            uuid = entry.record.session_uuid
            batch[uuid] = merge_entries(batch[uuid], entry) if uuid in batch else entry
        yield list(batch.values())


def write(batch: list[Entry], using: str) -> list[SessionRecord]:
    """Write a batch to the database; gives the records whose lines are due, and now to be printed.

    A record that can't be stored is reported with its content and left out. Raises what the database raises.
    """
    try:
        rows.write([entry.record for entry in batch], using)
    except UNSTORABLE:
        # One by one, so that it stands in nobody's way.
        for entry in batch:
            try:
                rows.write([entry.record], using)
            except UNSTORABLE as error:
                text = next(iter(str(error).splitlines()), "")
                log.error("a usage record can't be stored and is left out (%s): %s", text, entry.record)
    due = [entry.record for entry in batch if entry.line_due and entry.record.closed]
    lost = nodes.lost(using, [record.session_uuid for record in due]) if due else set()
    for record in due:
        if record.session_uuid in lost:
            log.error("another node has closed a session as node_lost while this one was cut off: %s", record)
    return [record for record in due if record.session_uuid not in lost]


def abandoned_in(folder: Path, *, but: Path | None = None) -> list[Path]:
    """The spools in `folder` that may be a dead process's; `but` is a living one's."""
    return [path for path in spools(folder) if path != but]


@contextmanager
def taken_over(path: Path) -> Iterator[Iterator[Entry] | None]:
    """What a dead process left at `path`; the file is removed when the block ends well.

    None where its process lives. Raises `OSError` where it can't be read.
    """
    with abandoned(path) as descriptor:
        yield read(descriptor, path) if descriptor is not None else None
        if descriptor is not None:
            with suppress(FileNotFoundError):
                path.unlink()
