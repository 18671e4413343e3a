"""The two places of a session."""

from enum import StrEnum


class Role(StrEnum):
    """Which of the two places a leg takes; each session has at most one leg of each."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> "Role":
        """The peer's role."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT
