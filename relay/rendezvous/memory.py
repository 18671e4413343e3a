"""The rendezvous of a single process: a dictionary. It can't be away, and it dies with the process."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

from relay.rendezvous import Arrival, Full, Placement
from relay.rules.roles import Role


@dataclass(slots=True)
class _Entry:
    session: UUID
    seats: dict[Role, Arrival]


class MemoryRendezvous:
    """Keeps who sits where in this process. No call awaits anything, so each is atomic on the event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self.on_superseded: Callable[[UUID], None] = lambda session: None  # never happens here

    async def join(self, session_id: str, arrival: Arrival) -> Placement:
        """See `Rendezvous.join`; never raises `Away`."""
        entry = self._entries.get(session_id)
        if entry is None:
            return self._open(session_id, arrival)
        taken = entry.seats
        role = arrival.role or next((role for role in Role if role not in taken), None)
        if role is None:
            raise Full
        if role in taken:
            if not arrival.replaces(taken[role]):
                raise Full
            return self._open(session_id, arrival, replaced=entry.session)
        taken[role] = arrival
        peer = taken[role.other]
        return Placement(entry.session, role, peer.leg, peer.channel)

    def paired(self, session: UUID) -> None:
        """See `Rendezvous.paired`: known here by who sits."""

    def end(self, session_id: str, session: UUID) -> None:
        """See `Rendezvous.end`."""
        entry = self._entries.get(session_id)
        if entry is not None and entry.session == session:
            del self._entries[session_id]

    async def check(self) -> None:
        """See `Rendezvous.check`."""

    async def close(self) -> None:
        """See `Rendezvous.close`."""

    def _open(self, session_id: str, arrival: Arrival, replaced: UUID | None = None) -> Placement:
        role = arrival.role or Role.CLIENT
        entry = self._entries[session_id] = _Entry(uuid4(), {role: arrival})
        return Placement(entry.session, role, replaced=replaced)
