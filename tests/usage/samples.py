"""Records to test with."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from relay.ledger import LegRecord, SessionRecord

START = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


def uuid(number: int) -> UUID:
    return UUID(int=number)


def leg(number: int = 1, **fields: Any) -> LegRecord:
    return LegRecord(**{"leg_uuid": uuid(number), "role": "client", "joined_at": START, **fields})


def live(number: int = 1, **fields: Any) -> SessionRecord:
    return SessionRecord(
        **{"session_uuid": uuid(number), "session_id": f"session-{number}", "started_at": START, **fields}
    )


def ended(number: int = 1, **fields: Any) -> SessionRecord:
    return live(
        number,
        **{
            "account_id": "acme",
            "waiting_ms": 100,
            "paired_ms": 200,
            "bytes_client_to_server": 1000 + number,
            "bytes_server_to_client": 2000,
            "frames_client_to_server": 3,
            "frames_server_to_client": 4,
            "timestamp": START + timedelta(seconds=number),
            "reason": "peer_left",
            "node": "host-1",
            "traffic": ((100, 0, 0), (200, 1000, 500), (300, 1000 + number, 2000)),
            **fields,
        },
    )
