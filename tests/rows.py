"""What the books of a running relay say of a session: its row, the rows of its legs and its line in the log.

They are figures that somebody pays for, so a test that moves bytes asks for them by `booked`.
"""

import asyncio
import time
from collections.abc import Iterable, Set
from datetime import timedelta
from typing import Any

from relay.ledger.records import LINE_FIELDS, plain
from relay.rules.closing import CloseReason
from tests.tables import moment

SECONDS = 15.0
"""Deadline for the rows to be there; never how long that takes."""

LEFT_WITHIN = timedelta(seconds=5)
"""Of the end of its session a leg leaves: at once, or when another node has heard of it."""

RECEIVED = {"server": "client_to_server", "client": "server_to_client"}
"""By a leg's role, the direction of its session in which it receives."""

DROPPED = (None, "")
"""Code and reason in the row of a leg that was told nothing, as its connection had dropped."""


async def booked(
    relay: Any,
    session_id: str,
    *,
    to_server: Iterable[str | bytes] | None = None,
    to_client: Iterable[str | bytes] | None = None,
    reason: str | None = None,
    close: tuple[int, str] | None = None,
    seen: Set[str] = frozenset(),
) -> dict[str, Any]:
    """The row of a session of this id that has ended, once all is written of its end. Where the id was used
    again, it's the one with this `reason` that is not in `seen`.

    Whatever the session, row, line and legs have to say the same. Beside that a test says what it knows:
    which messages reached each leg, why the session ended, and the peer's own close that was passed on.
    """
    deadline = time.monotonic() + SECONDS
    while not (ended := _ended(found := relay.rows(session_id), reason, seen)):
        assert time.monotonic() < deadline, f"no session has ended as {reason or 'anything'}: {found}"
        await asyncio.sleep(0.02)
    row = ended[0]
    line = await relay.session_closed(
        session_id, {str(other["session_uuid"]) for other in found if other is not row}
    )
    assert {name: plain(row[name]) for name in LINE_FIELDS} == {name: line[name] for name in LINE_FIELDS}
    for role, messages in (("server", to_server), ("client", to_client)):
        if messages is not None:
            assert _sums(row, role) == sums(messages), f"the {role} received something else: {row}"
    assert row["total_bytes"] == row["bytes_client_to_server"] + row["bytes_server_to_client"]
    for leg in row["legs"]:
        assert (leg["frames_received"], leg["bytes_received"]) == _sums(row, leg["role"]), row
        joined_at, left_at = moment(leg["joined_at"]), moment(leg["left_at"])
        assert joined_at <= left_at
        assert abs(left_at - row["timestamp"]) < LEFT_WITHIN
    told = [(leg["close_code"], leg["close_reason"]) for leg in row["legs"]]
    _check_closes(row["reason"], told, close)
    return row


def sums(messages: Iterable[str | bytes]) -> tuple[int, int]:
    """How many messages these are, and how many bytes of payload (text counts in UTF-8)."""
    sizes = [len(message.encode() if isinstance(message, str) else message) for message in messages]
    return len(sizes), sum(sizes)


def _check_closes(reason: str, told: list[tuple[int | None, str]], close: tuple[int, str] | None) -> None:
    """The rows of legs say with which close frame each was closed."""
    if reason == CloseReason.PEER_LEFT:
        assert len(set(told)) == 1, told
        assert close in (None, told[0]), told
        return
    assert close is None, "only the close of a peer that leaves is its own"
    if reason == CloseReason.PEER_LOST:
        assert DROPPED in told
        told.remove(DROPPED)
    for code, text in told:
        assert code == CloseReason(reason).code
        assert text.startswith(f"{reason}: ")


def _ended(found: list[dict[str, Any]], reason: str | None, seen: Set[str]) -> list[dict[str, Any]]:
    return [
        row
        for row in found
        if str(row["session_uuid"]) not in seen and _whole(row) and reason in (None, row["reason"])
    ]


def _whole(row: dict[str, Any]) -> bool:
    """Whether all that is to be written of a session's end is."""
    if row["timestamp"] is None:
        return False
    legs = row["legs"] or []
    # Across two nodes the second leg may have come to a session whose opener never heard of it.
    return len(legs) >= (2 if row["paired_at"] else 1) and all(leg["left_at"] for leg in legs)


def _sums(row: dict[str, Any], role: str) -> tuple[int, int]:
    return row[f"frames_{RECEIVED[role]}"], row[f"bytes_{RECEIVED[role]}"]
