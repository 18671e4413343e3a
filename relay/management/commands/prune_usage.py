"""`manage.py prune_usage`: deletes old records that were exported."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError

from relay import conf
from relay.ledger import pruning
from relay.ledger.exports import export
from relay.ledger.records import iso
from relay.ledger.writing import nodes


class Command(BaseCommand):
    help = (
        "Delete the sessions that ended before a date, with legs and corrections, if they were exported to "
        "every destination that anything was exported to. In batches, safe beside running nodes and to "
        "repeat. Says how many were deleted and how many were kept. Exit status 2: nothing deleted."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--before",
            required=True,
            metavar="MOMENT",
            help="date or date-time, UTC unless it says otherwise; not included, and at least "
            "RELAY_KEEP_USAGE_DAYS ago",
        )
        parser.add_argument(
            "--destination",
            action="append",
            default=[],
            metavar="NAME",
            help="only this one has to have them; may be given several times (default: all there were)",
        )

    def handle(self, *, before: str, destination: list[str], **options: Any) -> None:
        """Raises `CommandError` with status 2 for what the caller can mend, 1 when the database is away."""
        try:
            moment = export.moment(before)
            days = conf.current().keep_usage_days
            latest = nodes.now(DEFAULT_DB_ALIAS) - timedelta(days=days)
            if moment > latest:
                raise ValueError(
                    f"expected {iso(latest)} or earlier, as RELAY_KEEP_USAGE_DAYS is {days:g}; got {before}"
                )
        except ValueError as error:
            raise CommandError(f"--before: {error}", returncode=2) from None
        except DatabaseError as error:
            raise _away(error) from None
        try:
            known = pruning.destinations()
            for name in destination:
                if name not in known:
                    raise CommandError(f"--destination: nothing was exported to {name!r}", returncode=2)
            exported_to = sorted(set(destination)) or known
            pruned = pruning.prune(moment, exported_to)
        except DatabaseError as error:
            raise _away(error) from None
        where = f"to all of {', '.join(exported_to)}" if exported_to else "anywhere"
        self.stderr.write(
            f"{pruned.deleted} records deleted, {pruned.kept} kept that were not exported {where}, "
            f"of those that ended before {iso(moment)}",
            style_func=str,
        )


def _away(error: DatabaseError) -> CommandError:
    return CommandError(f"the database can't be written to: {str(error).splitlines()[0]}")
