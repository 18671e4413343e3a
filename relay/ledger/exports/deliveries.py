"""Exports that a destination bills from: each session goes to each destination once, whatever is killed when.

In this order, so that a kill between any two steps leaves neither a hole nor a double:

1. What no earlier export of the destination has is chosen, and written to a draft beside the file.
2. The draft is forced to disk.
3. One transaction records the export with its digest, and each session as exported to the destination. The
   database holds each pair once, so of two runs at the same time one fails here, and has written nothing.
4. The draft gets its name. It never replaces a file: that one may not have been taken yet.
5. The export is recorded as delivered.

A run that was killed before 3 left nothing but a draft, which is swept away. After 3, the next run of the
destination finishes the file first: with the draft, or with the same bytes made again from the records, which
can't change. So a file may appear once more only if it was taken away between 4 and 5, and then it has the
digest and the event ids that it had; or if two machines that don't share the folder run at once, where one
may finish what the other has between 3 and 4.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from django.db import DEFAULT_DB_ALIAS, IntegrityError, connections, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.expressions import RawSQL

from relay.ledger.exports.drafts import Draft, draft_of, is_held, publish, sweep
from relay.ledger.exports.export import Summary, Window, ended_sessions, stream
from relay.ledger.exports.formats import Options
from relay.models import ExportedSession, RelaySession, UsageExport

CHOSEN = "relay_export_chosen"
"""A temporary table with the keys of what is exported: a set that is fixed, and isn't held in memory."""


class DeliveryError(RuntimeError):
    """An export that can't be made now. The text is one line."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to go where. `by` is who asks for it."""

    destination: str
    target: Path
    form: str
    options: Options
    window: Window
    account: str | None
    by: str


def unfinished(destination: str, using: str = DEFAULT_DB_ALIAS) -> UsageExport | None:
    """The export of which a killed run may not have put the file in its place."""
    return UsageExport.objects.using(using).filter(destination=destination, delivered_at=None).first()


def finish(export: UsageExport, instead: Path | None = None, using: str = DEFAULT_DB_ALIAS) -> None:
    """Put the file of `export` where it was to be; if that can't be written any more, to `instead`.

    Raises `DeliveryError` while its own run is alive, `FileExistsError` where another file is in its place,
    `OSError` where neither can be written, and what the database raises.
    """
    try:
        _put_in_place(export, Path(export.output), using)
    except FileExistsError:
        raise
    except OSError:
        if instead is None or str(instead) == export.output:
            raise
        _put_in_place(export, instead, using)
        export.output = str(instead)
    _delivered(export, using)


def deliver(
    order: Order,
    progress: Callable[[int], object] | None = None,
    summary: Summary | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> UsageExport:
    """Export what no earlier run of the destination did. None of that may be unfinished.

    Raises `FileExistsError` where the file is there already, `OSError` where it can't be written,
    `DeliveryError` where another run came in between, and what the database raises; then nothing is exported,
    unless the record says so: in that case the next run finishes it.
    """
    summary = Summary() if summary is None else summary
    target = order.target
    if target.exists():
        raise FileExistsError(17, "it is there already, and a new export replaces none", str(target))
    sweep(target)
    uuid = uuid4()
    with Draft(target, uuid.hex) as draft:
        try:
            with _chosen(new_sessions(order, using), using) as chosen:
                for chunk in stream(chosen, order.form, order.options, summary=summary, progress=progress):
                    draft.write(chunk)
                draft.settle()
                draft.keep()  # whether the transaction below was committed may stay unknown
                export = _record(uuid, order, summary, using)
        except IntegrityError:
            draft.keep(False)
            raise DeliveryError(
                f"another run for {order.destination}, or prune_usage, came in between: nothing was "
                "exported; run it again"
            ) from None
        draft.publish(replace=False)
    _delivered(export, using)
    return export


def new_sessions(order: Order, using: str = DEFAULT_DB_ALIAS) -> QuerySet[RelaySession]:
    """What no earlier export of the destination has."""
    exported = ExportedSession.objects.filter(session=OuterRef("pk"), destination=order.destination)
    return ended_sessions(order.window, order.account, using).filter(~Exists(exported))


@contextmanager
def _chosen(sessions: QuerySet[RelaySession], using: str) -> Iterator[QuerySet[RelaySession]]:
    """`sessions` as they are now. On PostgreSQL all of the block is one transaction, which streaming needs;
    SQLite's would keep the relay from writing."""
    connection = connections[using]
    quote = connection.ops.quote_name
    key, kind = quote(str(RelaySession._meta.pk.column)), RelaySession._meta.pk.db_type(connection)
    on_postgresql = connection.vendor == "postgresql"
    select, parameters = sessions.order_by().values("pk").query.get_compiler(using).as_sql()
    with transaction.atomic(using) if on_postgresql else nullcontext(), connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {CHOSEN}")
        cursor.execute(f"CREATE TEMPORARY TABLE {CHOSEN} ({key} {kind} NOT NULL)")
        cursor.execute(f"INSERT INTO {CHOSEN} {select}", parameters)
        if on_postgresql:
            cursor.execute(f"ANALYZE {CHOSEN}")
        keys = RawSQL(f"SELECT {key} FROM {CHOSEN}", [])  # noqa: S608, S611 - no text from outside
        yield RelaySession.objects.using(using).filter(pk__in=keys)
        cursor.execute(f"DROP TABLE {CHOSEN}")


def _record(uuid: UUID, order: Order, summary: Summary, using: str) -> UsageExport:
    connection = connections[using]
    quote = connection.ops.quote_name
    table = quote(ExportedSession._meta.db_table)
    columns = [quote(name) for name in ("session_uuid", "export_uuid", "destination")]
    key = UsageExport._meta.pk.get_db_prep_value(uuid, connection)
    with transaction.atomic(using), connection.cursor() as cursor:
        export = UsageExport.objects.using(using).create(
            export_uuid=uuid,
            destination=order.destination,
            format=order.form,
            options=asdict(order.options),
            window_start=order.window.start,
            window_end=order.window.end,
            account_id=order.account,
            sessions=summary.sessions,
            rows=summary.rows,
            accounts=len(summary.accounts - {None}),
            total_bytes=summary.total_bytes,
            file_bytes=summary.file_bytes,
            digest=summary.digest,
            output=str(order.target),
            made_at=datetime.now(UTC),
            made_by=order.by,
        )
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608
            f"SELECT {columns[0]}, %s, %s FROM {CHOSEN}",
            [key, order.destination],
        )
    return export


def _put_in_place(export: UsageExport, target: Path, using: str) -> None:
    path = draft_of(target, export.export_uuid.hex)
    if is_held(path):
        raise DeliveryError(f"another run for {export.destination} is just putting its file in place")
    if target.exists():
        if _digest(target) != export.digest:
            raise FileExistsError(
                17, "another file is there, where one that is recorded has to go", str(target)
            )
        path.unlink(missing_ok=True)
    elif path.exists() and _digest(path) == export.digest:
        publish(path, target, replace=False)
    else:
        path.unlink(missing_ok=True)
        _make_again(export, target, using)


def _make_again(export: UsageExport, target: Path, using: str) -> None:
    sessions = RelaySession.objects.using(using).filter(exported__export=export)
    summary = Summary()
    with Draft(target, export.export_uuid.hex) as draft:
        for chunk in stream(sessions, export.format, Options(**export.options), summary=summary):
            draft.write(chunk)
        draft.settle()
        # Other versions of a library may write the same rows as other bytes.
        export.digest, export.file_bytes = summary.digest, summary.file_bytes
        draft.publish(replace=False)


def _delivered(export: UsageExport, using: str) -> None:
    export.delivered_at = datetime.now(UTC)
    fields = ("delivered_at", "output", "digest", "file_bytes")
    UsageExport.objects.using(using).filter(pk=export.pk, delivered_at=None).update(
        **{name: getattr(export, name) for name in fields}
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
