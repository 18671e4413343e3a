"""`manage.py settle_usage`: closes the sessions of dead nodes and replays spools, by hand."""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from relay import conf
from relay.ledger.writing import settling


class Command(BaseCommand):
    help = (
        "Write what dead processes of this host left in the spool, and close the sessions of dead nodes as "
        "node_lost. Running nodes do both by themselves; this is for when none runs. Safe beside them, and "
        "safe to repeat. Prints the session_closed lines that are due; a summary goes to standard error."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--wait",
            type=float,
            metavar="SECONDS",
            help="how long a silent node has to come back before it counts as dead (default: "
            "RELAY_NODE_LOST_SECONDS); 0 only when you know that no node runs",
        )

    def handle(self, *, wait: float | None, **options: Any) -> None:
        """Raises `CommandError` with status 1 when the database is away or a spool can't be read."""
        settings = conf.current()
        spool_dir = Path(settings.spool_dir) if settings.spool_dir else None
        try:
            done = settling.settle(
                spool_dir,
                settings.node_lost_seconds,
                lambda seconds: time.sleep(seconds if wait is None else wait),
            )
        except OSError as error:
            raise CommandError(f"a spool can't be read: {error}") from None
        except DatabaseError as error:
            raise CommandError(f"the database can't be written to: {str(error).splitlines()[0]}") from None
        self.stderr.write(
            f"{done.spools} spools with {done.replayed} records written, {done.in_use} in use by running "
            f"nodes; {done.closed} sessions closed as node_lost",
            style_func=str,
        )
