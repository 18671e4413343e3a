"""Why a session ends: one enum for close codes, usage records, log lines and metric labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

NO_STATUS = 1005
"""What a receiver sees for a close frame without a code (RFC 6455 section 7.4.1); never sent on the wire."""

ABNORMAL = 1006
"""What a receiver sees when the connection dropped without a close frame (RFC 6455 section 7.4.1)."""

MAX_REASON_BYTES = 123
"""A close frame carries at most 125 bytes, two of which are the code (RFC 6455 section 5.5)."""


class CloseReason(StrEnum):
    """One word for each way in which a session can end. The value is what records, logs and labels show."""

    PEER_LEFT = "peer_left"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    WAIT_TIMEOUT = "wait_timeout"
    SESSION_FULL = "session_full"
    PEER_LOST = "peer_lost"
    REPLACED = "replaced"
    IDLE_TIMEOUT = "idle_timeout"
    STALLED = "stalled"
    EXPIRED = "expired"
    LINK_LOST = "link_lost"
    QUOTA_EXCEEDED = "quota_exceeded"
    CLOSED_BY_OPERATOR = "closed_by_operator"
    MESSAGE_TOO_BIG = "message_too_big"
    RESTARTING = "restarting"
    UNAVAILABLE = "unavailable"
    NODE_LOST = "node_lost"

    @property
    def code(self) -> int:
        """The WebSocket close code that a leg is sent for this reason."""
        return _CODES[self]

    @property
    def sentence(self) -> str:
        """What happened and what to do, for the person who reads the close frame."""
        return _SENTENCES[self]


_CODES = {
    CloseReason.PEER_LEFT: 1000,
    CloseReason.UNAUTHORIZED: 4401,
    CloseReason.FORBIDDEN: 4403,
    CloseReason.WAIT_TIMEOUT: 4408,
    CloseReason.SESSION_FULL: 4409,
    CloseReason.PEER_LOST: 4410,
    CloseReason.REPLACED: 4411,
    CloseReason.IDLE_TIMEOUT: 4412,
    CloseReason.STALLED: 4413,
    CloseReason.EXPIRED: 4414,
    CloseReason.LINK_LOST: 4415,
    CloseReason.QUOTA_EXCEEDED: 4429,
    CloseReason.CLOSED_BY_OPERATOR: 4499,
    CloseReason.MESSAGE_TOO_BIG: 1009,
    CloseReason.RESTARTING: 1012,
    CloseReason.UNAVAILABLE: 1013,
    CloseReason.NODE_LOST: 4410,  # written to records only; a leg of the dead node is gone
}

_SENTENCES = {
    CloseReason.PEER_LEFT: "the peer closed the connection",
    CloseReason.UNAUTHORIZED: "the token is missing or not valid",
    CloseReason.FORBIDDEN: "the token is for another session or role",
    CloseReason.WAIT_TIMEOUT: "the peer did not come in time",
    CloseReason.SESSION_FULL: "both places of this session are taken",
    CloseReason.PEER_LOST: "the peer's connection dropped",
    CloseReason.REPLACED: "a participant connected again; come back to meet it",
    CloseReason.IDLE_TIMEOUT: "no frame passed either way for too long",
    CloseReason.STALLED: "the receiver took nothing while data waited for it",
    CloseReason.EXPIRED: "the session reached its longest duration",
    CloseReason.LINK_LOST: "the link between the two nodes broke",
    CloseReason.QUOTA_EXCEEDED: "a quota is used up",
    CloseReason.CLOSED_BY_OPERATOR: "an operator closed the session",
    CloseReason.MESSAGE_TOO_BIG: "a message is over the size limit",
    CloseReason.RESTARTING: "the relay restarts; come back",
    CloseReason.UNAVAILABLE: "the relay can't admit anyone just now; try again later",
    CloseReason.NODE_LOST: "the relay node died",
}


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame to send: code and reason text, with the word that goes to the record."""

    reason: CloseReason
    code: int
    text: str

    @classmethod
    def because(cls, reason: CloseReason, detail: str = "") -> "Close":
        """The close frame for `reason`, as `word: sentence`; `detail` takes the standard sentence's place."""
        return cls(reason, reason.code, clip(f"{reason}: {detail or reason.sentence}"))

    @classmethod
    def by_peer(cls, code: int, text: str) -> "Close":
        """The peer's own clean close, passed on unchanged; a close without a code is passed on as 1000."""
        return cls(CloseReason.PEER_LEFT, 1000 if code == NO_STATUS else code, clip(text))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a message to another node; `from_dict` reads them."""
        return {"reason": str(self.reason), "code": self.code, "text": self.text}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Close":
        """What `as_dict` gave, whatever else is in `values`."""
        return cls(CloseReason(values["reason"]), values["code"], values["text"])


def clip(text: str) -> str:
    """`text` cut at a character boundary so that its UTF-8 form fits a close frame (RFC 6455 section 5.5)."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
