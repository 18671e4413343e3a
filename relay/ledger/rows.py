"""Records to rows: one idempotent upsert that never touches what has ended, on SQLite and PostgreSQL."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from relay.ledger.records import SessionRecord
from relay.models import RelayLeg, RelaySession

ROWS_PER_STATEMENT = 500
"""Longer statements are no faster, and each is built in memory as a whole."""


def write(records: Collection[SessionRecord], using: str) -> None:
    """Upsert `records` (at most one per session) and their legs in one transaction on the database `using`.

    Writing the same again changes nothing, and neither does anything that comes after a session's or a leg's
    end. Raises what the database raises; then nothing was written.
    """
    # In one order everywhere: two nodes that write the same sessions can't lock each other out.
    ordered = sorted(records, key=lambda record: record.session_uuid)
    with transaction.atomic(using=using):
        _upsert(RelaySession, [(record, None) for record in ordered], ended="timestamp", using=using)
        legs = [(leg, record.session_uuid) for record in ordered for leg in record.legs]
        _upsert(RelayLeg, legs, ended="left_at", using=using)


def _upsert(model: type[models.Model], rows: Sequence[tuple[Any, Any]], ended: str, using: str) -> None:
    """Each row is a record and the key of the session that it belongs to (None for a session itself).

    `bulk_create(update_conflicts=True)` has no condition, and reading first would leave a gap in which
    another node closes the session. So the condition is in the statement, where the database holds it.
    """
    if not rows:
        return
    connection = connections[using]
    quote = connection.ops.quote_name
    fields = model._meta.concrete_fields
    columns = [quote(str(field.column)) for field in fields]
    key = quote(str(model._meta.pk.column))
    table = quote(model._meta.db_table)
    sql = (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES %s "  # noqa: S608
        f"ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{c} = EXCLUDED.{c}' for c in columns if c != key)} "
        f"WHERE {table}.{quote(ended)} IS NULL"
    )
    one_row = f"({', '.join(['%s'] * len(columns))})"
    adapt = _adapter(connection)
    values = [
        [adapt(session if field.remote_field else getattr(record, field.attname)) for field in fields]
        for record, session in rows
    ]
    # One statement for many rows: a statement each would be a round trip each.
    step = min(ROWS_PER_STATEMENT, connection.ops.bulk_batch_size(fields, values))
    with connection.cursor() as cursor:
        for start in range(0, len(values), step):
            some = values[start : start + step]
            cursor.execute(sql % ", ".join([one_row] * len(some)), list(chain.from_iterable(some)))


def _adapter(connection: BaseDatabaseWrapper) -> Callable[[Any], Any]:
    """How this database takes a value. What Django's fields do as well, at a tenth of the time: only times
    and UUIDs differ between databases, and the records have checked the rest."""
    native_uuid = connection.features.has_native_uuid_field
    adapt_time = connection.ops.adapt_datetimefield_value

    def adapt(value: Any) -> Any:
        if isinstance(value, datetime):
            return adapt_time(value)
        if isinstance(value, UUID) and not native_uuid:
            return value.hex
        return value

    return adapt
