"""From the options of the command line to a side of a session: how to connect, and whom to accept."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from relay.client.connection import RelayConnection
from relay.client.peers import Fingerprint, KnownPeers, PeerRule, SignedClaim, claims_of, own_key
from relay.client.terminal import Words
from relay.client.wire import fingerprint

HOME: Final = Path("~/.config/lem-relay").expanduser()
"""Where keys are kept."""


@dataclass(frozen=True)
class Side:
    """What the options say: how to connect, and whom to accept."""

    url: str
    token_file: Path | None
    vouching: str
    key: X25519PrivateKey
    rule: PeerRule
    verify: Words | None
    retry: float

    @property
    def token(self) -> str:
        """The token that opens sessions: what the file has now, as a new one may be put there in time.

        Raises `click.UsageError`, `OSError` and `ValueError`.
        """
        token = _text(self.token_file, "RELAY_TOKEN")
        if not token:
            raise click.UsageError("there is no token: set RELAY_TOKEN, or give --token-file")
        return token

    def connection(self, session_id: str) -> RelayConnection:
        """A new connection to the session. Raises what `token` raises."""
        return RelayConnection(
            self.url, session_id, self.token, key=self.key, rule=self.rule, vouching_token=self.vouching,
            verify=self.verify, connect_seconds=self.retry,
        )  # fmt: skip

    def session(self, session_id: str | None) -> str:
        """The session given, or else the one that the token is for."""
        chosen = session_id or claims_of(self.token).get("session_id")
        if not isinstance(chosen, str) or not chosen:
            raise click.UsageError("the token opens any session: say which with --session")
        return chosen


def side_of(options: dict[str, Any], *, own_legs: bool = False) -> Side:
    """The side that `options` of the command line describe, or one for both legs, which are ours.

    Raises `click.UsageError`, `KeyFileError`, `OSError` and `ValueError`.
    """
    rule: PeerRule
    key = own_key(options["key_file"])
    try:
        if own_legs:
            rule = Fingerprint(fingerprint(key.public_key().public_bytes_raw()))
        elif options["peer_key"]:
            rule = Fingerprint(options["peer_key"])
        elif options["signer"]:
            rule = SignedClaim(options["signer"].read_bytes())
        else:
            rule = KnownPeers(options["known_peers"], options["peer"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    vouching = "" if own_legs else _text(options["vouching_file"], "RELAY_VOUCHING_TOKEN")
    verify = Words() if options["verify"] and not own_legs else None
    side = Side(options["url"], options["token_file"], vouching, key, rule, verify, options["retry"])
    role = claims_of(side.token).get("role")
    if own_legs and role:
        raise click.UsageError(
            f"the token is for the role {role} alone, and both legs need one: use a token without a role"
        )
    return side


def _text(file: Path | None, variable: str) -> str:
    """What stands in the file, or else in the variable of the environment."""
    return (file.read_text(encoding="utf-8") if file else os.environ.get(variable, "")).strip()
