"""`manage.py generate_usage`: made-up usage to look at, in a database that has no real one."""

import math
import sys
from argparse import ArgumentParser
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError

from relay.ledger.exports import export
from relay.ledger.writing import rows
from relay.management import generated
from relay.models import RelaySession

AT_ONCE = 5000
"""Sessions a transaction: few enough that memory stays small, enough that the disk is seldom waited for."""

MOST_SESSIONS = 10_000_000
MOST_DAYS = 366


class Command(BaseCommand):
    help = (
        "Fill the database with made-up usage, for demos and tests: ended sessions with both legs, of "
        "accounts of all sizes, with the rhythm of days and weeks, and with every close reason. Refuses on "
        "a database that has real records. The same --seed and --until give the same records, and writing "
        "them twice changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--sessions", type=int, default=10_000, help="how many (default: 10000)")
        parser.add_argument("--days", type=int, default=31, help="over how many days (default: 31)")
        parser.add_argument(
            "--until",
            metavar="MOMENT",
            help="the end of the last day, date or date-time, UTC unless it says otherwise (default: now)",
        )
        parser.add_argument(
            "--seed", type=int, default=1, help="another one gives other records (default: 1)"
        )

    def handle(self, *, sessions: int, days: int, until: str | None, seed: int, **options: Any) -> None:
        """Raises `CommandError` with status 2 for what the caller can mend, 1 when the database is away."""
        for option, value, most in (("--sessions", sessions, MOST_SESSIONS), ("--days", days, MOST_DAYS)):
            if not 1 <= value <= most:
                raise CommandError(f"{option}: expected 1 to {most}, got {value}", returncode=2)
        try:
            end = export.moment(until) if until else datetime.now(UTC).replace(microsecond=0)
        except ValueError as error:
            raise CommandError(f"--until: {error}", returncode=2) from None
        try:
            if RelaySession.objects.exclude(node__startswith=generated.NODE_PREFIX).exists():
                raise CommandError(
                    "the database has real records: made-up ones would be billed with them", returncode=2
                )
            self._write(generated.sessions(sessions, days, end, seed), math.ceil(sessions / AT_ONCE))
        except DatabaseError as error:
            raise CommandError(f"the database can't be written to: {str(error).splitlines()[0]}") from None
        self.stderr.write(f"{sessions} sessions of the {days} days before {end.isoformat()}", style_func=str)

    def _write(self, records: Any, batches: int) -> None:
        for done in range(1, batches + 1):
            rows.write(list(islice(records, AT_ONCE)), DEFAULT_DB_ALIAS)
            if sys.stderr.isatty():
                self.stderr.write(f"\r{done * 100 // batches} %", ending="\r" if done < batches else "\n")
