"""What the tables say of a session, read from outside, and whether all that tells of it agrees: its row, the
rows of its legs, its line in the log, and what its clients received."""

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from relay.ledger.records import LINE_FIELDS, plain
from relay.rules.closing import CloseReason
from tests.relays import START_SECONDS

RECEIVES = {"client": "server_to_client", "server": "client_to_server"}
"""The direction of what a leg is sent, by its role."""

AT_ONCE = timedelta(seconds=1)
"""A session and its legs on the same node end in one turn of its event loop."""

Row = dict[str, Any]
"""A session's columns; under `legs` its legs'."""


DUMP = """
from django.core import serializers
from relay.models import RelayLeg, RelaySession
sessions = RelaySession.objects.filter(**{only!r})
print(serializers.serialize("json", [*sessions, *RelayLeg.objects.filter(session__in=sessions)]))
"""


def dumped(relay: Any, **only: str) -> list[Row]:
    """Sessions of a relay or a cluster, whatever its database and wherever that is; `only` narrows them."""
    tables = json.loads(relay.manage("shell", "-v0", "-c", DUMP.format(only=only)).stdout)
    sessions: dict[str, Row] = {}
    legs: list[Row] = []
    for entry in tables:
        row = {name: _moment(name, value) for name, value in entry["fields"].items()}
        if entry["model"] == "relay.relaysession":
            sessions[entry["pk"]] = {"session_uuid": entry["pk"], "legs": [], **row}
        else:
            legs.append(row)
    for leg in legs:
        sessions[leg["session"]]["legs"].append(leg)
    return list(sessions.values())


def ended(relay: Any, session_id: str) -> Row:
    """The only session of this id, when it and its legs have ended in the tables."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = relay.rows(session_id)
        if found and all(map(has_ended, found)):
            (row,) = found
            return row
    raise AssertionError(f"no ended session {session_id} in the tables")


async def recorded(relay: Any, session_id: str) -> Row:
    """As `ended`, beside what else the event loop does."""
    return await asyncio.to_thread(ended, relay, session_id)


def has_ended(row: Row) -> bool:
    """Whether a session and all its legs have ended."""
    return row["timestamp"] is not None and all(leg["left_at"] for leg in row["legs"])


def check_session(
    row: Row,
    line: Mapping[str, Any] | None,
    received: Mapping[str, int] | None = None,
    closes: Mapping[str, tuple[int, str]] | None = None,
) -> None:
    """A session that has ended with all its legs is recorded alike wherever it is recorded.

    `line` is its line in the log, None where it may have none. `received` are counts of what its clients
    received (`bytes_client_to_server` and so on), `closes` by role the close frames that they were sent.
    """
    assert has_ended(row), row
    if line is not None:
        check_line(row, line)
    assert row["total_bytes"] == row["bytes_client_to_server"] + row["bytes_server_to_client"]
    assert round(1000 * row["duration_seconds"]) == (
        round(1000 * row["waiting_seconds"]) + round(1000 * row["paired_seconds"])
    )
    for name, count in (received or {}).items():
        assert row[name] == count, (name, row)
    legs = {leg["role"]: leg for leg in row["legs"]}
    assert len(legs) == len(row["legs"]), "two legs of one role"
    assert len(legs) == (2 if row["paired_at"] is not None else 1), row
    for role, leg in legs.items():
        _check_leg(role, leg, row)
        if closes and role in closes:
            assert (leg["close_code"], leg["close_reason"]) == closes[role], (role, row)
    _check_closes(list(legs.values()), CloseReason(row["reason"]))


def check_line(row: Row, line: Mapping[str, Any]) -> None:
    """A session's row and its line say the same."""
    assert {name: plain(row[name]) for name in LINE_FIELDS} == {name: line[name] for name in LINE_FIELDS}


def _check_leg(role: str, leg: Row, row: Row) -> None:
    for what in ("bytes", "frames"):
        assert leg[f"{what}_received"] == row[f"{what}_{RECEIVES[role]}"], (what, role, row)
    assert leg["joined_at"] <= leg["left_at"]
    late = leg["left_at"] - row["timestamp"]
    if row["reason"] == CloseReason.NODE_LOST:
        assert late >= timedelta()  # when somebody finds them, which is after their session was found
    elif leg["node"] == row["node"]:
        assert timedelta() <= late < AT_ONCE


def _check_closes(legs: list[Row], reason: CloseReason) -> None:
    """Code and text of the close frame that each leg was sent, or None and nothing where it was gone."""
    closes = [(leg["close_code"], leg["close_reason"]) for leg in legs]
    gone = (None, "")
    told = (reason.code, f"{reason}: {reason.sentence}")
    if reason is CloseReason.NODE_LOST:
        assert set(closes) == {gone}
    elif reason is CloseReason.PEER_LOST:
        assert sorted(closes, key=str) == sorted([gone, told][: len(legs)], key=str)
    elif reason is CloseReason.PEER_LEFT:
        (close,) = set(closes)  # the one that left said it, and the other was told the same
        assert close[0] is not None
    else:
        assert {code for code, _ in closes} == {reason.code}
        assert all(text.startswith(f"{reason}: ") for _, text in closes)


def _moment(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if value and (name.endswith("_at") or name == "timestamp") else value
