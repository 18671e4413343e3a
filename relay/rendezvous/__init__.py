"""Who is in which session: the one place that decides it, atomically."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from relay.rules.roles import Role


@dataclass(frozen=True, slots=True)
class Arrival:
    """A leg that asks for a place. `role` is None where its token names none.

    `channel` is where its node receives what another node has to say to this leg, empty where there is none.
    """

    leg: UUID
    subject: str | None
    role: Role | None
    channel: str = ""

    def replaces(self, seated: "Arrival") -> bool:
        """Whether this is the participant `seated` again: tokens of one subject that both name this role."""
        return (
            self.role is not None
            and self.role == seated.role
            and self.subject is not None
            and self.subject == seated.subject
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """The place a leg got: in a new session (`peer` is None) or opposite the leg `peer`.

    `peer_channel` is the channel of the peer's arrival. `replaced` is the session that this arrival ended,
    where it replaced a leg of its own participant, or came to a session half of which died with its node.
    """

    session: UUID
    role: Role
    peer: UUID | None = None
    peer_channel: str = ""
    replaced: UUID | None = None


class Full(Exception):
    """Both places are taken, or the place that the token names is, by someone else."""


class Away(Exception):
    """The store can't be asked now. Nobody was placed; the same arrival may try again later."""


class Rendezvous(Protocol):
    """Places legs. Each call happens at once or not at all, in one order for everyone who shares the store.

    The rules, for a session id with at most one live session:
    - A leg whose token names a role takes that place. Where it is taken by the same subject, the old
      session ends and the leg opens a new one; where by anyone else, `Full`.
    - A leg without a role takes the place that is free, the client's first, and never replaces anyone.
    - A session that was paired is never joined again: whoever comes when one half of it died with its node
      opens a new one.
    """

    on_superseded: Callable[[UUID], None]
    """Called with a session of this process that has lost its place to another one."""

    async def join(self, session_id: str, arrival: Arrival) -> Placement:
        """Give `arrival` a place. Raises `Full`, or `Away` if the store can't be asked."""

    def paired(self, session: UUID) -> None:
        """The leg that this process has in `session` has met its peer. Never waits."""

    def end(self, session_id: str, session: UUID) -> None:
        """Free `session_id` if `session` still holds it: whoever came after stays.

        Never waits, so that a session's end is one step; a store that can be away sees to it by itself.
        """

    async def check(self) -> None:
        """Raises what is wrong if the store can't be asked."""

    async def close(self) -> None:
        """Do what is still to be done, if that is possible now, and let go of the store."""
