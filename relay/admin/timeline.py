"""What happened in a session, in the order in which it did, from its records."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from relay.models import RelayLeg, RelaySession
from relay.rules.closing import CloseReason
from relay.rules.units import human_bytes, human_duration


@dataclass(frozen=True, slots=True)
class Event:
    """One step: `moment` is aware, `text` may be empty, `kind` is a word for its colour."""

    moment: datetime
    title: str
    text: str = ""
    kind: str = ""


def recorded_at(session: RelaySession) -> datetime:
    """The moment of which a session's figures are: its end, or its last record so far."""
    return session.timestamp or session.started_at + timedelta(seconds=session.duration_seconds)


def timeline(session: RelaySession, legs: Sequence[RelayLeg]) -> list[Event]:
    """The steps of `session` with these `legs`."""
    events = [Event(leg.joined_at, f"{leg.role.capitalize()} joined", _who(leg)) for leg in legs]
    if session.paired_at is not None:
        waited = f"after {human_duration(session.waiting_seconds)} of waiting"
        events.append(Event(session.paired_at, "Paired", waited, "paired"))
    at = recorded_at(session)
    if session.total_bytes or session.timestamp is None:
        title = "Relayed" if session.timestamp else "Relayed so far"
        events.append(Event(at, f"{title} {human_bytes(session.total_bytes)}", _traffic(session), "traffic"))
    events += [
        Event(leg.left_at, f"{leg.role.capitalize()} left", _farewell(leg)) for leg in legs if leg.left_at
    ]
    if session.timestamp is not None:
        why = CloseReason(session.reason).sentence
        events.append(Event(session.timestamp, f"Closed: {session.reason}", why, "closed"))
    return sorted(events, key=lambda event: event.moment)


def _who(leg: RelayLeg) -> str:
    subject = leg.subject or "no subject"
    return f"{subject} from {leg.address}" if leg.address else subject


def _traffic(session: RelaySession) -> str:
    ways = (
        ("client to server", session.bytes_client_to_server, session.frames_client_to_server),
        ("server to client", session.bytes_server_to_client, session.frames_server_to_client),
    )
    text = "; ".join(
        f"{human_bytes(count)} in {frames:,} frame{'' if frames == 1 else 's'} {way}"
        for way, count, frames in ways
    )
    if session.paired_seconds >= 1:
        text += f"; {human_bytes(round(session.total_bytes / session.paired_seconds))} a second on average"
    return text


def _farewell(leg: RelayLeg) -> str:
    if leg.close_code is None:
        return "its connection dropped, or its node died"
    return f"with {leg.close_code} {leg.close_reason}".strip()
