"""From the spool to the database: in order, in batches, and as often as you like."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from operator import attrgetter
from pathlib import Path
from uuid import UUID

from django.db import DataError, IntegrityError

from relay.ledger.records import SessionRecord, rest_of
from relay.ledger.writing import nodes, rows
from relay.ledger.writing.spool import Entry, abandoned, merge_entries, read, spools
from relay.models import RelaySession

BATCH = 2000
"""Records in one transaction: enough that it isn't the transaction that costs, and a few MB of memory."""

UNSTORABLE = (DataError, IntegrityError, ValueError, TypeError, OverflowError)
"""Errors of a record rather than of the database: no later attempt would succeed."""

SIDES = ("client_to_server", "server_to_client")
figures = attrgetter("reason", *(f"{what}_{side}" for what in ("bytes", "frames") for side in SIDES))
"""How a session ended and what passed, of a record or a row."""

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


def write(batch: list[Entry], using: str, *, tried: bool) -> list[SessionRecord]:
    """Write a batch to the database; gives the records whose lines are now to be printed.

    A line is due with the write that ends the row: so it's printed once, however often a spool is replayed.
    Where the entries were `tried` before by this process, which knows what it has printed, and that attempt
    has ended the row as told and only the answer got lost, the line is due as well.

    A session that others have closed meanwhile, taking its node for dead: what it has come to beyond that is
    a record of its own. A record that can't be stored is reported with its content and left out. Raises what
    the database raises.
    """
    had_ended = _write_rows(batch, using)
    due = [
        e.record for e in batch if e.line_due and e.record.closed and e.record.session_uuid not in had_ended
    ]
    if not had_ended:
        return due
    rows_there = RelaySession.objects.using(using).in_bulk(had_ended)
    rest = []
    for entry in batch:
        record, row = entry.record, rows_there.get(entry.record.session_uuid)
        if row is None or row.timestamp is None:
            continue
        if (row.timestamp, figures(row)) == (record.timestamp, figures(record)):
            if tried and entry.line_due:
                due.append(record)
            continue
        more = rest_of(record, nodes.record_of(row, row.timestamp, row.reason))
        if more is not None:
            rest.append(Entry(more, entry.line_due))
            if record.closed:
                log.warning(
                    "session %s was closed as %s by others, for whom its node was lost; what they did not "
                    "know of is recorded as session %s",
                    record.session_uuid,
                    row.reason,
                    more.session_uuid,
                )
    return due + (write(rest, using, tried=tried) if rest else [])


def _write_rows(batch: list[Entry], using: str) -> set[UUID]:
    """Gives the sessions whose rows had ended before."""
    try:
        return rows.write([entry.record for entry in batch], using)
    except UNSTORABLE:
        # One by one, so that it stands in nobody's way.
        had_ended = set()
        for entry in batch:
            try:
                had_ended |= rows.write([entry.record], using)
            except UNSTORABLE as error:
                text = next(iter(str(error).splitlines()), "")
                log.error("a usage record can't be stored and is left out (%s): %s", text, entry.record)
        return had_ended


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
