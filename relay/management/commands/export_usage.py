"""`manage.py export_usage`: the sessions that ended in a window of time, for billing."""

import getpass
import os
import re
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO, cast

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from tqdm import tqdm

from relay.ledger.exports import deliveries, events, export
from relay.ledger.exports.formats import FormatError, Options
from relay.management.output import open_output
from relay.models import DESTINATION_LENGTH, NAME_LENGTH, UsageExport

MENDABLE = 2
"""Exit status for what the caller can mend."""


class Command(BaseCommand):
    help = (
        "Write the sessions that ended in a window of time, by their ends, or totals per account. "
        "Data goes to --output and nothing else does; a summary goes to standard error. With --new: what no "
        "earlier export to the --destination had, whenever it ended; safe to kill and to run again. "
        "Exit status 2: nothing written."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        moment = "date or date-time, UTC unless it says otherwise"
        parser.add_argument("--from", dest="start", metavar="MOMENT", help=f"{moment}; included")
        parser.add_argument("--to", dest="end", metavar="MOMENT", help=f"{moment}; not included")
        parser.add_argument("--month", metavar="YYYY-MM", help="a calendar month in UTC, instead of the two")
        parser.add_argument("--account", help="only this account's sessions")
        parser.add_argument(
            "--by",
            choices=("session", "day", "month"),
            default="session",
            help="one row per session (the default), or totals per account and day or month, in UTC",
        )
        parser.add_argument(
            "--format",
            choices=export.FORMATS,
            default="csv",
            help="csv (the default), jsonl and parquet are tables; cloudevents (for OpenMeter), stripe and "
            "lago are events, each line the body of one request",
        )
        parser.add_argument(
            "--measure",
            choices=events.MEASURES,
            help="what is billed, for stripe and lago: default total_bytes; cloudevents has all of them",
        )
        parser.add_argument(
            "--event-name",
            metavar="NAME",
            help="as the meter or metric is called there: default relay_ and the measure, for cloudevents "
            "relay_session",
        )
        parser.add_argument(
            "--output",
            default="-",
            metavar="FILE",
            help="a file, which appears whole or not at all, or - for standard output (the default)",
        )
        parser.add_argument(
            "--destination", metavar="NAME", help="who is to get it: letters, digits, and . _ - in between"
        )
        parser.add_argument(
            "--new",
            action="store_true",
            help="only what no earlier export to --destination had; needs --output, which replaces no file",
        )

    def handle(self, *, output: str, by: str, format: str, account: str | None, **given: Any) -> None:
        """Raises `CommandError` with status 2 for what the caller can mend, 1 when the database is away."""
        try:
            window = _window(given["start"], given["end"], given["month"], may_be_open=given["new"])
            destination = _destination(given["destination"], given["new"], output, by)
            options = _options(format, given["measure"], given["event_name"])
        except ValueError as error:
            raise CommandError(str(error), returncode=MENDABLE) from None
        summary = export.Summary()
        done = False
        try:
            if account is not None and not export.account_exists(account):
                raise CommandError(f"--account: there is no record of {account!r}", returncode=MENDABLE)
            if destination:
                target = Path(output).resolve()
                order = deliveries.Order(destination, target, format, options, window, account, _operator())
                self._deliver(order)
                return
            sessions = export.ended_sessions(window, account)
            with (
                _bar(sessions.count) as progress,
                closing(
                    export.stream(sessions, format, options, by=by, summary=summary, progress=progress)
                ) as chunks,
                open_output(output, cast(TextIO, self.stdout)) as write,
            ):
                for chunk in chunks:
                    write(chunk)
            done = True
        except BrokenPipeError:
            pass  # whoever read it has seen enough, as `head` does
        except FormatError as error:
            raise CommandError(f"--format: {error}", returncode=MENDABLE) from None
        except OSError as error:
            # One that is in the way may be in that of an earlier run's file.
            path = error.filename if isinstance(error, FileExistsError) else output
            text = error.strerror or str(error)
            raise CommandError(f"--output: can't write {path}: {text}", returncode=MENDABLE) from None
        except DatabaseError as error:
            raise CommandError(f"the database can't be read: {str(error).splitlines()[0]}") from None
        if not done:
            sys.exit(1)  # not above: the exception would keep the cursor open beyond its connection
        self._warn(format, summary)
        left_out = summary.sessions - summary.rows if format in events.FORMATS else 0
        accounts = len(summary.accounts - {None})
        self._say(_figures(summary.rows, left_out, summary.file_bytes, summary.total_bytes, accounts, window))

    def _deliver(self, order: deliveries.Order) -> None:
        try:
            unfinished = deliveries.unfinished(order.destination)
            if unfinished is not None:
                deliveries.finish(unfinished, order.target)
                made = f"{unfinished.made_at:%Y-%m-%d %H:%M} UTC"
                self._say(f"finished the export of {made}: {_recorded(unfinished)}")
                if unfinished.output == str(order.target):
                    return  # the place is taken; what is new since goes into the next run's file
            summary = export.Summary()
            with _bar(deliveries.new_sessions(order).count) as progress:
                delivered = deliveries.deliver(order, progress, summary)
            self._warn(order.form, summary)
            self._say(_recorded(delivered))
        except deliveries.DeliveryError as error:
            raise CommandError(str(error)) from None

    def _warn(self, form: str, summary: export.Summary) -> None:
        late = datetime.now(UTC) - timedelta(days=events.STRIPE_DAYS)
        if form == "stripe" and summary.first and datetime.fromisoformat(summary.first) < late:
            self._say(
                f"warning: Stripe refuses events that are more than {events.STRIPE_DAYS} days old; "
                f"the oldest here is of {summary.first}"
            )

    def _say(self, text: str) -> None:
        self.stderr.write(text, style_func=str)


def _window(start: str | None, end: str | None, month: str | None, *, may_be_open: bool) -> export.Window:
    if month is not None:
        if start is not None or end is not None:
            raise ValueError("--month: expected either that or --from and --to")
        try:
            return export.month(month)
        except ValueError as error:
            raise ValueError(f"--month: {error}") from None
    if not may_be_open and (start is None or end is None):
        raise ValueError("expected a window: --from and --to, or --month")
    return export.Window(_moment("--from", start), _moment("--to", end))


def _moment(option: str, text: str | None) -> datetime | None:
    try:
        return None if text is None else export.moment(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _destination(name: str | None, new: bool, output: str, by: str) -> str | None:
    if new != (name is not None):
        raise ValueError("--new and --destination go together: what is new is so for a destination")
    if name is None:
        return None
    if not re.fullmatch(f"[A-Za-z0-9._-]{{1,{DESTINATION_LENGTH}}}", name):
        raise ValueError(
            f"--destination: expected 1 to {DESTINATION_LENGTH} of A-Z a-z 0-9 . _ -, got {name!r}"
        )
    if output == "-":
        raise ValueError(
            "--new: expected --output with a file: what became of standard output can't be known"
        )
    if by != "session":
        raise ValueError("--new: expected --by session: totals can't be told from those of before")
    return name


def _options(form: str, measure: str | None, event_name: str | None) -> Options:
    if form not in events.FORMATS and (measure is not None or event_name is not None):
        raise ValueError(f"--measure and --event-name go with {', '.join(events.FORMATS)}, not with {form}")
    if form == "cloudevents" and measure is not None:
        raise ValueError("--measure goes with stripe and lago: an event of cloudevents has all measures")
    return Options(measure or Options().measure, event_name or "")


def _operator() -> str:
    """Who asks: the user of this process and its host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:NAME_LENGTH]


def _figures(
    rows: int, left_out: int, file_bytes: int, relayed: int, accounts: int, window: export.Window
) -> str:
    out = f" ({left_out} session{'s'[: left_out > 1]} without an account left out)" if left_out else ""
    sizes = f"{file_bytes} bytes written, {relayed} bytes relayed"
    return f"{rows} rows{out}, {sizes}, {accounts} accounts, {window}"


def _recorded(made: UsageExport) -> str:
    window = export.Window(made.window_start, made.window_end)
    left_out = made.sessions - made.rows
    figures = _figures(made.rows, left_out, made.file_bytes, made.total_bytes, made.accounts, window)
    return f"{figures}, to {made.output}, SHA-256 {made.digest}"


@contextmanager
def _bar(count: Callable[[], int]) -> Iterator[Callable[[int], object] | None]:
    """What is told how many sessions came; a bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=count(), unit=" sessions", file=sys.stderr, leave=False) as bar:
        yield bar.update
