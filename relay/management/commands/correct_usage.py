"""`manage.py correct_usage`: records that the figures of an ended session should have been others."""

from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from relay.ledger import corrections


class Command(BaseCommand):
    help = (
        "Record the right figures of an ended session. The session's own record stays as it is; a new one "
        "refers to it and has the differences, and is exported as such. Figures that aren't given stay. "
        "Exit status 2: nothing recorded."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("session", metavar="UUID", help="the session_uuid of the session")
        for name in corrections.FIGURES:
            seconds = name in corrections.DURATIONS
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=float if seconds else int,
                metavar="SECONDS" if seconds else "COUNT",
                help="what is right, not the difference",
            )
        parser.add_argument("--void", action="store_true", help="all of them are 0: the session isn't billed")
        parser.add_argument("--note", required=True, help="why; kept in the record")

    def handle(self, *, session: str, void: bool, note: str, **given: Any) -> None:
        """Raises `CommandError` with status 2 for what the caller can mend, 1 when the database is away."""
        right = {name: given[name] for name in corrections.FIGURES if given[name] is not None}
        try:
            if bool(right) == void:
                raise ValueError("expected either figures or --void")
            try:
                uuid = UUID(session)
            except ValueError:
                raise ValueError(f"expected the UUID of a session, got {session!r}") from None
            made = corrections.correct(uuid, right or dict.fromkeys(corrections.FIGURES, 0), note)
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        except DatabaseError as error:
            raise CommandError(f"the database can't be written to: {str(error).splitlines()[0]}") from None
        if made is None:
            self.stderr.write("the figures are so already: nothing recorded", style_func=str)
            return
        changes = ((name, getattr(made, name)) for name in corrections.FIGURES)
        listed = ", ".join(f"{name} {change:+}" for name, change in changes if change)
        self.stderr.write(f"correction {made.revision} of {uuid}: {listed}", style_func=str)
