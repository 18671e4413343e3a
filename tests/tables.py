"""The rows of a running relay's sessions, read straight from its database; needs no Django."""

import contextlib
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row


def rows(environ: Mapping[str, str], session_id: str) -> list[dict[str, Any]]:
    """The rows of a session id in the database of the relay that has this environment, the oldest first, with
    their legs' under `legs`.

    Times are aware `datetime`s and UUIDs are `UUID`s whatever the database is.
    """
    sessions = (
        "SELECT * FROM relay_relaysession WHERE session_id = {} ORDER BY started_at, paired_seconds DESC"
    )
    legs = "SELECT * FROM relay_relayleg WHERE session_uuid = {} ORDER BY role"
    if url := environ.get("DATABASE_URL"):
        with psycopg.connect(url, row_factory=dict_row) as connection:
            found = connection.execute(sessions.format("%s"), (session_id,)).fetchall()
            for row in found:
                row["legs"] = connection.execute(legs.format("%s"), (row["session_uuid"],)).fetchall()
            return found
    with contextlib.closing(sqlite3.connect(Path(environ["RELAY_VAR_DIR"]) / "relay.sqlite3")) as lite:
        lite.row_factory = sqlite3.Row
        found = [dict(row) for row in lite.execute(sessions.format("?"), (session_id,))]
        for row in found:
            of_session = lite.execute(legs.format("?"), (row["session_uuid"],))
            row["legs"] = [_typed(dict(leg)) for leg in of_session]
    return [_typed(row) for row in found]


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of SQLite, which keeps UUIDs and times as text."""
    for name, value in row.items():
        if value is not None and (name.endswith("_at") or name == "timestamp"):
            row[name] = moment(value)
        elif name.endswith("_uuid"):
            row[name] = UUID(value)
    return row


def moment(value: str | datetime) -> datetime:
    """A time of a row, aware, whatever the database is."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found if found.tzinfo else found.replace(tzinfo=UTC)
