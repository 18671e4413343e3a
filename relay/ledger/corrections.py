"""A correction of an ended session: a record of its own that refers to it, with signed differences.

Whoever adds up a session and its corrections has the right figures, and so has whoever bills from exports:
they add up what they are sent (`relay.ledger.exports.events` says why no replaced figure would do). A
correction ends when it is made, so that it is in the export of the period that is open then, and the exports
of the past stay as they were.
"""

from collections.abc import Mapping
from uuid import UUID, uuid5

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from relay.ledger.writing import nodes
from relay.models import NAME_LENGTH, RelaySession

COUNTERS = (
    *("bytes_client_to_server", "bytes_server_to_client"),
    *("frames_client_to_server", "frames_server_to_client"),
)

DURATIONS = ("waiting_seconds", "paired_seconds")

FIGURES = (*COUNTERS, *DURATIONS)
"""What can be corrected. The total and the duration follow."""


class CorrectionError(ValueError):
    """A correction that can't be made. The text is one line."""


def correct(
    session: UUID, right: Mapping[str, float], note: str, using: str = DEFAULT_DB_ALIAS
) -> RelaySession | None:
    """Record that the figures of `session`, with the corrections that it has, should have been `right`.

    `right` has some of `FIGURES`; the others stay. `note` says why. Gives the correction, or None where the
    figures are right already: the same call twice makes one. Raises `CorrectionError`, and what the database
    raises.
    """
    if not note.strip() or len(note) > NAME_LENGTH:
        raise CorrectionError(f"the note: expected 1 to {NAME_LENGTH} characters that say why")
    for name, value in right.items():
        if name not in FIGURES:
            raise CorrectionError(f"{name}: expected one of {', '.join(FIGURES)}")
        if not 0 <= value < 2**53:
            raise CorrectionError(f"{name}: expected what is right, not negative; got {value:g}")
    with transaction.atomic(using):
        original = _locked(session, using)
        records = [original, *RelaySession.objects.using(using).filter(corrects=original)]
        change = {name: _units(name, value) - _sum(records, name) for name, value in right.items()}
        if not any(change.values()):
            return None
        counted = {name: change.get(name, 0) for name in COUNTERS}
        waited, paired = (change.get(name, 0) for name in DURATIONS)
        revision = len(records)
        moment = nodes.now(using)
        return RelaySession.objects.using(using).create(
            session_uuid=uuid5(session, str(revision)),
            session_id=original.session_id,
            account_id=original.account_id,
            **counted,
            total_bytes=counted["bytes_client_to_server"] + counted["bytes_server_to_client"],
            waiting_seconds=waited / 1000,
            paired_seconds=paired / 1000,
            duration_seconds=(waited + paired) / 1000,
            started_at=moment,
            timestamp=moment,
            reason=original.reason,
            corrects=original,
            revision=revision,
            note=note,
        )


def _locked(session: UUID, using: str) -> RelaySession:
    """The session, with which nobody else does the same meanwhile."""
    found = RelaySession.objects.using(using).filter(pk=session)
    if connections[using].features.has_select_for_update:  # elsewhere the transaction itself is exclusive
        found = found.select_for_update()
    original = found.first()
    if original is None:
        raise CorrectionError(f"there is no session {session}")
    if original.timestamp is None:
        raise CorrectionError(f"the session {session} is still live")
    if original.corrects_id is not None:
        raise CorrectionError(f"{session} is a correction: correct the session {original.corrects_id}")
    return original


def _units(name: str, value: float) -> int:
    return round(value * 1000) if name in DURATIONS else int(value)


def _sum(records: list[RelaySession], name: str) -> int:
    return sum(_units(name, getattr(record, name)) for record in records)
