"""`manage.py export_usage`: the sessions that ended in a window of time, for billing."""

import sys
from argparse import ArgumentParser
from contextlib import closing
from typing import Any, TextIO, cast

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from relay.ledger import export
from relay.management.output import open_output


class Command(BaseCommand):
    help = (
        "Write the sessions that ended in a window of time, in the order of their ends. Data goes to "
        "--output and nothing else does; a summary goes to standard error. Exit status 2: nothing written."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        moment = "date or date-time, UTC unless it says otherwise"
        parser.add_argument(
            "--from", required=True, dest="start", metavar="MOMENT", help=f"{moment}; included"
        )
        parser.add_argument(
            "--to", required=True, dest="end", metavar="MOMENT", help=f"{moment}; not included"
        )
        parser.add_argument("--account", help="only this account's sessions")
        parser.add_argument("--format", choices=export.FORMATS, default="csv", help="default: csv")
        parser.add_argument(
            "--output",
            default="-",
            metavar="FILE",
            help="a file, which appears whole or not at all, or - for standard output (the default)",
        )

    def handle(
        self, *, start: str, end: str, account: str | None, format: str, output: str, **options: Any
    ) -> None:
        """Raises `CommandError` with status 2 for what the caller can mend, 1 when the database is away."""
        try:
            window = export.Window(_moment("--from", start), _moment("--to", end))
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        summary = None
        try:
            if account is not None and not export.account_exists(account):
                raise CommandError(f"--account: there is no record of {account!r}", returncode=2)
            sessions = export.ended_sessions(window, account)
            with closing(sessions), open_output(output, cast(TextIO, self.stdout)) as sink:
                summary = export.write(sessions, format, sink)
        except BrokenPipeError:
            pass  # whoever read it has seen enough, as `head` does
        except OSError as error:
            raise CommandError(f"--output: can't write {output}: {error.strerror}", returncode=2) from None
        except DatabaseError as error:
            raise CommandError(f"the database can't be read: {str(error).splitlines()[0]}") from None
        if summary is None:
            sys.exit(1)  # not above: the exception would keep the cursor open beyond its connection
        self.stderr.write(
            f"{summary.sessions} sessions, {summary.total_bytes} bytes, {window}", style_func=str
        )


def _moment(option: str, text: str) -> Any:
    try:
        return export.moment(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
