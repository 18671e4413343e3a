"""From the claims of a verified token to a grant: what its bearer may do here. No I/O, no cryptography.

Claims are those of RFC 7519 (`sub`, `exp`, `jti`) and the platform's own (`account_id`, `session_id`,
`role`, `token_type`). Whoever calls has verified the signature and the times already.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.rules.closing import Close, CloseReason
from relay.rules.roles import Role

SESSION_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}", re.ASCII)
"""A session id: the unreserved characters of a URL (RFC 3986 section 2.3), so that it needs no escaping."""

SESSION_ID_RULE = "a session id is 1 to 128 characters out of A-Z a-z 0-9 . _ ~ -"

MAX_CLAIM_CHARS = 255
"""Longest text claim, in characters: what the columns of the usage records hold."""


SCOPE_KEY = "relay.grant"
"""Key in the ASGI scope under which the middleware leaves the `Grant`, or the `Refused` in its place."""


class Refused(Exception):
    """Someone is not let in. `close` is the close frame that tells them why."""

    def __init__(self, reason: CloseReason, detail: str = "") -> None:
        self.close = Close.because(reason, detail)
        super().__init__(self.close.text)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified token allows. None stands for a claim that the token does not have."""

    subject: str | None
    account_id: str | None
    role: Role | None
    session_id: str | None
    token_id: str | None

    def check_session(self, session_id: str) -> None:
        """Raises `Refused` (forbidden) if the token is for another session than `session_id`."""
        if self.session_id is not None and self.session_id != session_id:
            raise Refused(CloseReason.FORBIDDEN, "the token is for another session")


def is_session_id(text: str) -> bool:
    """Whether `text` may name a session."""
    return SESSION_ID.fullmatch(text) is not None


def grant_from_claims(claims: Mapping[str, Any], *, user_id_claim: str = "user_id") -> Grant:
    """The grant of a token whose signature and times are good.

    Raises `Refused`: unauthorized where a claim is missing or can't be used at all, forbidden where the
    token is sound but names no role of this relay.
    """
    if "exp" not in claims:
        raise Refused(CloseReason.UNAUTHORIZED, "the token has no expiry (claim exp)")
    if claims.get("token_type", "access") != "access":
        raise Refused(CloseReason.UNAUTHORIZED, "not an access token (claim token_type)")
    session_id = _text(claims, "session_id")
    if session_id is not None and not is_session_id(session_id):
        raise Refused(CloseReason.UNAUTHORIZED, f"claim session_id: {SESSION_ID_RULE}")
    return Grant(
        subject=_text(claims, user_id_claim) or _text(claims, "sub"),
        account_id=_text(claims, "account_id"),
        role=_role(claims),
        session_id=session_id,
        token_id=_text(claims, "jti"),
    )


def _role(claims: Mapping[str, Any]) -> Role | None:
    role = _text(claims, "role")
    if role is None:
        return None
    try:
        return Role(role)
    except ValueError:
        raise Refused(CloseReason.FORBIDDEN, "claim role is neither client nor server") from None


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """A claim as text; numbers are what some issuers use for ids. None if it's absent, null or empty.

    Only what every database can store and every log can show: a NUL character or a lone surrogate would
    make the usage record impossible to write.
    """
    value = claims.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > MAX_CLAIM_CHARS or not value.isprintable():
        raise Refused(
            CloseReason.UNAUTHORIZED, f"claim {name} is not a text of at most {MAX_CLAIM_CHARS} characters"
        )
    return value
