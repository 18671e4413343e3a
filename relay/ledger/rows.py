"""Records to rows: one idempotent upsert that never touches what has ended, on SQLite and PostgreSQL."""

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connections, models, transaction

from relay.ledger.records import SessionRecord
from relay.models import CORRECTION_FIELDS, RelayLeg, RelaySession


class _SomeHaveEnded(Exception):
    """Fewer rows were written than there are records."""


def write(records: Collection[SessionRecord], using: str) -> set[UUID]:
    """Upsert `records` (at most one per session) and their legs on the database `using`.

    Gives those of this node's sessions whose rows had ended before: they stay as they were. Writing the same
    again changes nothing, and neither does anything that comes after a session's or a leg's end.

    One transaction for the sessions that another node records, one for those that are this node's to record.
    Raises what the database raises; then the first of the two may have been written.
    """
    # In one order in each transaction: two nodes that write the same sessions can't lock each other out.
    ordered = sorted(records, key=lambda record: record.session_uuid)
    if others := [record for record in ordered if not record.owned]:
        with transaction.atomic(using=using):
            _upsert(RelaySession, [(record, None) for record in others], ended="", using=using)
            _upsert_legs(others, using)
    if ours := [record for record in ordered if record.owned]:
        try:
            with transaction.atomic(using=using):
                if _upsert_sessions(ours, using) < len(ours):
                    raise _SomeHaveEnded
                _upsert_legs(ours, using)
        except _SomeHaveEnded:
            return _write_those_that_live(ours, using)
    return set()


def _write_those_that_live(records: list[SessionRecord], using: str) -> set[UUID]:
    """As `write`; asks first which sessions have ended, and keeps it so until it has written."""
    with transaction.atomic(using=using):
        rows = RelaySession.objects.using(using).select_for_update().order_by("session_uuid")
        rows = rows.filter(session_uuid__in=[record.session_uuid for record in records])
        had_ended = {row.session_uuid for row in rows if row.timestamp is not None}
        _upsert_sessions(records, using)
        _upsert_legs(records, using)
    return had_ended


def _upsert_sessions(records: list[SessionRecord], using: str) -> int:
    return _upsert(RelaySession, [(record, None) for record in records], ended="timestamp", using=using)


def _upsert_legs(records: list[SessionRecord], using: str) -> None:
    legs = [(leg, record.session_uuid) for record in records for leg in record.legs]
    _upsert(RelayLeg, legs, ended="left_at", using=using)


def _upsert(model: type[models.Model], rows: Sequence[tuple[Any, Any]], ended: str, using: str) -> int:
    """Each row is a record and the key of the session that it belongs to (None for a session itself).

    A row whose column `ended` has a value stays as it is; without such a column, every row that is there.
    Gives the number of rows that were written.

    `bulk_create(update_conflicts=True)` has no condition, and reading first would leave a gap in which
    another node closes the session. So the condition is in the statement, where the database holds it.
    """
    if not rows:
        return 0
    connection = connections[using]
    quote = connection.ops.quote_name
    fields = [field for field in model._meta.concrete_fields if field.name not in CORRECTION_FIELDS]
    columns = [quote(str(field.column)) for field in fields]
    values = [
        [session if field.remote_field else getattr(record, field.attname) for field in fields]
        for record, session in rows
    ]
    on_postgresql = connection.vendor == "postgresql"
    if on_postgresql:
        # All rows as one parameter: psycopg's work for each single one would be most of the CPU time.
        casts = (f"(value->>{i})::{field.db_type(connection)}" for i, field in enumerate(fields))
        source = f"SELECT {', '.join(casts)} FROM json_array_elements(%s::json) AS rows(value)"  # noqa: S608
    else:
        source = f"VALUES ({', '.join(['%s'] * len(columns))})"
    table, key = quote(model._meta.db_table), quote(str(model._meta.pk.column))
    sql = f"INSERT INTO {table} ({', '.join(columns)}) {source} ON CONFLICT ({key}) DO "
    if ended:
        changes = ", ".join(f"{column} = EXCLUDED.{column}" for column in columns if column != key)
        sql += f"UPDATE SET {changes} WHERE {table}.{quote(ended)} IS NULL"
    else:
        sql += "NOTHING"
    with connection.cursor() as cursor:
        if on_postgresql:
            cursor.execute(sql, [json.dumps(values, default=str)])
        else:
            adapt_time = connection.ops.adapt_datetimefield_value
            cursor.executemany(sql, [[_for_sqlite(value, adapt_time) for value in row] for row in values])
        return int(cursor.rowcount)


def _for_sqlite(value: Any, adapt_time: Any) -> Any:
    """Django's own forms, without its fields' checks of what the records have checked already."""
    if isinstance(value, datetime):
        return adapt_time(value)
    return value.hex if isinstance(value, UUID) else value
