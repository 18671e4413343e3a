"""ASGI middleware: from the token of a WebSocket upgrade to a grant, or to the reason why there is none.

A token may stand in three places, looked at in this order: the `Authorization: Bearer` header (RFC 6750
section 2.1), an entry `bearer.<jwt>` of `Sec-WebSocket-Protocol` (for browsers, which can't set headers),
and `?token=`. Verified by simplejwt's backend as configured in `SIMPLE_JWT`; no database query.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from rest_framework_simplejwt.exceptions import TokenBackendError, TokenBackendExpiredToken
from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.state import token_backend

from relay import conf
from relay.rules.closing import CloseReason
from relay.rules.grants import SCOPE_KEY, Grant, Refused, grant_from_claims

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]

TOKEN_PROTOCOL = "bearer."  # noqa: S105 - a prefix, not a secret
"""Prefix of the subprotocol entry that carries a token. It's never the one that is chosen."""


class TokenMiddleware:
    """Puts the grant into the scope, or the refusal, for the application inside; decides nothing else.

    A bad token doesn't end the upgrade here: the consumer accepts it first and closes then, because a
    browser is shown neither status nor reason of a refused upgrade.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        outcome: Grant | Refused
        try:
            outcome = verify(token_of(scope))
        except Refused as refused:
            outcome = refused
        await self.inner({**scope, SCOPE_KEY: outcome}, receive, send)


def token_of(scope: Scope) -> bytes:
    """The token of an upgrade request, as it came. Raises `Refused` if there is none or it's too long."""
    token = _from_header(scope) or _from_subprotocol(scope) or _from_query(scope)
    if not token:
        raise Refused(
            CloseReason.UNAUTHORIZED,
            "no token; send Authorization: Bearer, subprotocol bearer.<jwt> or ?token=",
        )
    limit = conf.current().max_token_bytes
    if len(token) > limit:
        raise Refused(CloseReason.UNAUTHORIZED, f"the token is longer than {limit} bytes")
    return token


def verify(token: bytes) -> Grant:
    """The grant of a token whose signature, times and claims are good; raises `Refused` for any other."""
    try:
        claims = token_backend.decode(token)
    except TokenBackendExpiredToken:
        raise Refused(CloseReason.UNAUTHORIZED, "the token has expired") from None
    except TokenBackendError as error:
        raise Refused(CloseReason.UNAUTHORIZED, "the token is not valid") from error
    except Exception as error:
        # Whatever a stranger's bytes raise in the parsers below (an infinite expiry, brackets nested a
        # thousand deep) is a bad token, never an error of the relay.
        logger.debug("a token could not be parsed: %s", type(error).__name__)
        raise Refused(CloseReason.UNAUTHORIZED, "the token is not valid") from error
    return grant_from_claims(claims, user_id_claim=api_settings.USER_ID_CLAIM)


def _from_header(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return bytes(token).strip()
    return None


def _from_subprotocol(scope: Scope) -> bytes | None:
    for entry in scope.get("subprotocols", ()):
        if entry.startswith(TOKEN_PROTOCOL):
            return str(entry).removeprefix(TOKEN_PROTOCOL).encode()
    return None


def _from_query(scope: Scope) -> bytes | None:
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return query["token"][0].encode() if "token" in query else None
