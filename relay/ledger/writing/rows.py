"""Records to rows: one idempotent upsert that never touches what has ended, on SQLite and PostgreSQL."""

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any
from uuid import UUID

from django.db import connections, models, transaction

from relay.ledger.records import SessionRecord
from relay.models import CORRECTION_FIELDS, RelayLeg, RelaySession

MAX_INTEGER = 2**63 - 1
"""The largest that a column of either database holds."""


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
    ordered = sorted(records, key=attrgetter("session_uuid"))
    if others := [record for record in ordered if not record.owned]:
        with transaction.atomic(using=using):
            _upsert_sessions(others, "", using)
            _upsert_legs(others, using)
    if ours := [record for record in ordered if record.owned]:
        try:
            with transaction.atomic(using=using):
                if _upsert_sessions(ours, "timestamp", using) < len(ours):
                    raise _SomeHaveEnded
                _upsert_legs(ours, using)
        except _SomeHaveEnded:
            while True:
                # Each time round there is one more row that another node has made and ended.
                with suppress(_SomeHaveEnded):
                    return _write_those_that_live(ours, using)
    return set()


def _write_those_that_live(records: list[SessionRecord], using: str) -> set[UUID]:
    """As `write`; asks first which sessions have ended, and keeps it so until it has written.

    Raises `_SomeHaveEnded` where a row that was not there yet, so that it could not be kept, has ended since.
    """
    with transaction.atomic(using=using):
        rows = RelaySession.objects.using(using).select_for_update().order_by("session_uuid")
        rows = rows.filter(session_uuid__in=[record.session_uuid for record in records])
        had_ended = {row.session_uuid for row in rows if row.timestamp is not None}
        if _upsert_sessions(records, "timestamp", using) < len(records) - len(had_ended):
            raise _SomeHaveEnded
        _upsert_legs(records, using)
    return had_ended


def _upsert_sessions(records: list[SessionRecord], ended: str, using: str) -> int:
    return _upsert(RelaySession, list(map(_values_of(RelaySession), records)), ended, using)


def _upsert_legs(records: list[SessionRecord], using: str) -> None:
    values = _values_of(RelayLeg)
    legs = [(record.session_uuid, *values(leg)) for record in records for leg in record.legs]
    _upsert(RelayLeg, legs, "left_at", using)


def _upsert(model: type[models.Model], rows: list[tuple[Any, ...]], ended: str, using: str) -> int:
    """Each row has the values of the columns in the order of `_fields`. Gives how many rows were written.

    A row whose column `ended` has a value stays as it is; without such a column, every row that is there.
    All rows are one parameter: to bind each value of each row would be most of the CPU time on PostgreSQL,
    and on SQLite take the interpreter's lock from the event loop for each row, not once.
    """
    if not rows:
        return 0
    connection = connections[using]
    form: Callable[[Any], Any] = str
    if connection.vendor != "postgresql":
        adapt_time = connection.ops.adapt_datetimefield_value
        # SQLite would make an inexact float of it, PostgreSQL refuses it.
        if any(value > MAX_INTEGER for row in rows for value in row if type(value) is int):
            raise OverflowError("a number that no column holds")

        def form(value: Any) -> Any:
            """Django's own forms, without its fields' checks of what the records have checked already."""
            return adapt_time(value) if isinstance(value, datetime) else value.hex

    with connection.cursor() as cursor:
        cursor.execute(_statement(model, ended, using, connection.vendor), [json.dumps(rows, default=form)])
        return int(cursor.rowcount)


@cache
def _fields(model: type[models.Model]) -> "list[models.Field[Any, Any]]":
    """The columns: the key of the session that a leg belongs to, then what is in the record."""
    fields = [field for field in model._meta.concrete_fields if field.name not in CORRECTION_FIELDS]
    return sorted(fields, key=lambda field: not field.remote_field)


@cache
def _values_of(model: type[models.Model]) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(field.attname for field in _fields(model) if not field.remote_field))


@cache
def _statement(model: type[models.Model], ended: str, using: str, vendor: str) -> str:
    """The upsert of rows that are given as JSON.

    `bulk_create(update_conflicts=True)` has no condition, and reading first would leave a gap in which
    another node closes the session. So the condition is in the statement, where the database holds it.
    """
    connection = connections[using]  # of that vendor: what has this alias may change in tests
    quote = connection.ops.quote_name
    fields = _fields(model)
    columns = [quote(str(field.column)) for field in fields]
    if vendor == "postgresql":
        casts = (f"(value->>{i})::{field.db_type(connection)}" for i, field in enumerate(fields))
        source = f"SELECT {', '.join(casts)} FROM json_array_elements(%s::json) AS rows(value)"  # noqa: S608
    else:
        values = (f"value->>{i}" for i in range(len(fields)))
        # The WHERE keeps the parser from taking ON for that of a join.
        source = f"SELECT {', '.join(values)} FROM json_each(%s) WHERE true"  # noqa: S608
    table, key = quote(model._meta.db_table), quote(str(model._meta.pk.column))
    sql = f"INSERT INTO {table} ({', '.join(columns)}) {source} ON CONFLICT ({key}) DO "
    if ended:
        changes = ", ".join(f"{column} = EXCLUDED.{column}" for column in columns if column != key)
        return sql + f"UPDATE SET {changes} WHERE {table}.{quote(ended)} IS NULL"
    return sql + "NOTHING"
