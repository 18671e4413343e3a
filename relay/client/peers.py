"""Who is at the other end: this side's own key, and the rules by which the peer's key is accepted.

One rule decides, the first that is configured: a fingerprint; a vouching token, which the signaling server
signed with a private key; the known-peers file (trust on first use).

A vouching token names a key and a session and opens nothing, so that it can be shown to whoever answers. It
is never the token that opens the session, and each is refused in the other's place (`token_type`).
"""

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from relay.client.disk import publish
from relay.client.wire import fingerprint

log = logging.getLogger(__name__)

ASYMMETRIC: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA")
"""Never HS: the relay knows the shared secret and could vouch for a key of its own."""
VOUCHING: Final = "vouching"
"""Claim `token_type` of a vouching token: the relay lets no one in with it, as it is not `access`."""


class PeerRefused(Exception):
    """The peer's key is not the one it has to be. Nothing was sent to it and nothing taken from it."""


class KeyFileError(Exception):
    """A file with keys can't be used; the message says which and why."""


class PeerRule(Protocol):
    """How a peer is accepted."""

    def check(self, key: bytes, session_id: str, vouching: bytes) -> None:
        """Raises `PeerRefused` unless `key` (32 bytes) is the peer's; `vouching` is its handshake payload."""

    def accepted(self, key: bytes, session_id: str) -> None:
        """Called once everything else about the peer is settled, too."""


@dataclass(frozen=True)
class Fingerprint:
    """The peer has the key with this fingerprint, `SHA256:...`."""

    expected: str

    def check(self, key: bytes, session_id: str, vouching: bytes) -> None:
        if fingerprint(key) != self.expected.rstrip("="):
            raise PeerRefused(f"the peer's key is {fingerprint(key)}, not {self.expected}")

    def accepted(self, key: bytes, session_id: str) -> None:
        pass


@dataclass(frozen=True)
class SignedClaim:
    """The peer's vouching token, signed by whoever has the private key to `public_key_pem`, names its key."""

    public_key_pem: bytes

    def check(self, key: bytes, session_id: str, vouching: bytes) -> None:
        if not vouching:
            raise PeerRefused("the peer sent no token that vouches for its key")
        try:
            claims = jwt.decode(
                vouching,
                self.public_key_pem,
                list(ASYMMETRIC),
                options={"require": ["exp", "token_type", "session_id", "noise_key"], "verify_aud": False},
            )
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise PeerRefused(f"the token that vouches for the peer's key is not valid: {error}") from None
        if claims["token_type"] != VOUCHING:
            raise PeerRefused("the token that the peer sent is none that vouches for a key")
        if claims["session_id"] != session_id:
            raise PeerRefused("the token that vouches for the peer's key is for another session")
        if claims["noise_key"] != fingerprint(key):
            raise PeerRefused("the token that the peer sent vouches for another key")

    def accepted(self, key: bytes, session_id: str) -> None:
        pass


@dataclass(frozen=True)
class KnownPeers:
    """A file of lines `NAME SHA256:...`: whoever comes first under a name is remembered, all others refused.

    The name is `peer`, or else the session id; where that is new each time, this trusts whoever comes.
    """

    path: Path
    peer: str = ""

    def __post_init__(self) -> None:
        if len(self.peer.split()) > 1 or self.peer != self.peer.strip():
            raise ValueError("a peer's name has no blanks")

    def check(self, key: bytes, session_id: str, vouching: bytes) -> None:
        name = self.peer or session_id
        known = self._known(name)
        if known and known != fingerprint(key):
            raise PeerRefused(
                f"THE KEY OF {name!r} HAS CHANGED: it was {known}, now it is {fingerprint(key)}. "
                f"Someone may be in between. If the peer did get a new key, remove its line from {self.path}"
            )

    def accepted(self, key: bytes, session_id: str) -> None:
        name = self.peer or session_id
        if self._known(name):
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One write at the end of the file: two processes that do so at once leave two whole lines.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{name} {fingerprint(key)}\n".encode())
        finally:
            os.close(file)
        self.check(key, session_id, b"")  # the first line of a name counts, which may be another process's
        log.info("from now on %r is who has the key %s, by %s", name, fingerprint(key), self.path)

    def _known(self, name: str) -> str | None:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise KeyFileError(f"{self.path} can't be read: {error}") from None
        for line in lines:
            fields = line.split()
            if fields and fields[0] == name:
                if len(fields) != 2:
                    raise KeyFileError(f"{self.path} has a line for {name} that is not NAME SHA256:...")
                return fields[1]
        return None


def own_key(path: Path) -> X25519PrivateKey:
    """This side's static key from a PEM file, made (readable by its owner only) when it isn't there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = X25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        if not path.exists():
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
            with contextlib.suppress(FileExistsError):  # another process was the first, and its key counts
                publish(draft, path)
            draft.unlink(missing_ok=True)
        loaded = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"{path} can't be used as a key: {error}") from None
    if not isinstance(loaded, X25519PrivateKey):
        raise KeyFileError(f"{path} holds a key of another kind than X25519")
    return loaded


def vouching(token: str, public_key: bytes, session_id: str) -> bytes:
    """The handshake payload that shows a vouching token; none where `token` is empty.

    Raises `ValueError` where the peer could not accept it, or where it may open more than it has to.
    """
    if not token:
        return b""
    try:
        header: dict[str, Any] = jwt.get_unverified_header(token)
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise ValueError(f"the vouching token can't be read: {error}") from None
    if claims.get("token_type") != VOUCHING:
        raise ValueError(f"the vouching token has no claim token_type {VOUCHING!r}, so it is not shown")
    if header.get("alg") not in ASYMMETRIC:
        raise ValueError("the vouching token is not signed with a private key, so it proves nothing")
    if claims.get("session_id") != session_id:
        raise ValueError("the vouching token is for another session")
    if claims.get("noise_key") != fingerprint(public_key):
        raise ValueError(f"the vouching token is not for our key, {fingerprint(public_key)}")
    return token.encode()


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, unverified: the relay decides. Empty where it can't be read."""
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return {}
    return claims
