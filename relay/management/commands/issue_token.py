"""`manage.py issue_token`: an access token for trying the relay out, where one key signs and verifies."""

import re
import secrets
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.tokens import AccessToken

from relay.models import RelayLeg

SESSION_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")

LONGEST_LIFETIME = 31 * 86_400
"""Seconds. A token that lives for longer than a month is not for trying things out."""


class Command(BaseCommand):
    help = "Print a signed access token for trying the relay out, and nothing else."
    requires_system_checks = ()  # it needs the key only, no database and no running relay

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--session", help="the only session that it opens (default: any)")
        parser.add_argument(
            "--role", choices=RelayLeg.Role.values, help="the only role that it takes (default: by arrival)"
        )
        parser.add_argument("--account", help="the account that pays (default: none)")
        parser.add_argument(
            "--subject", help="who connects (default: a new name, so that no two are the same)"
        )
        parser.add_argument(
            "--lifetime",
            type=int,
            default=3600,
            metavar="SECONDS",
            help=f"seconds until it expires, 1 to {LONGEST_LIFETIME} (default: 3600)",
        )

    def handle(
        self,
        *,
        session: str | None,
        role: str | None,
        account: str | None,
        subject: str | None,
        lifetime: int,
        **options: Any,
    ) -> None:
        """Raises `CommandError` with status 2 for what the caller can mend."""
        if not str(api_settings.ALGORITHM).startswith("HS"):
            raise CommandError(
                f"tokens are signed with {api_settings.ALGORITHM} and only the public key is here: "
                f"they have to come from the signaling server",
                returncode=2,
            )
        if session is not None and not SESSION_ID.fullmatch(session):
            raise CommandError(
                f"--session: expected 1 to 128 of A-Z a-z 0-9 . _ ~ -, got {session!r}", returncode=2
            )
        if not 1 <= lifetime <= LONGEST_LIFETIME:
            raise CommandError(
                f"--lifetime: expected 1 to {LONGEST_LIFETIME} seconds, got {lifetime}", returncode=2
            )
        token = AccessToken()
        token.set_exp(lifetime=timedelta(seconds=lifetime))
        token[api_settings.USER_ID_CLAIM] = subject or f"try-{secrets.token_hex(4)}"
        for claim, value in (("session_id", session), ("role", role), ("account_id", account)):
            if value is not None:
                token[claim] = value
        self.stdout.write(str(token))
