"""The ledger: takes records from any thread without blocking and writes them behind, in batches."""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, DataError, IntegrityError, close_old_connections, connections

from relay import conf
from relay.ledger import rows
from relay.ledger.lines import LinePrinter
from relay.ledger.records import SessionRecord, merge

FIRST_RETRY_SECONDS = 0.1
"""Pause after the first failure, doubled with each further one: a dropped connection costs next to none."""

LONGEST_RETRY_SECONDS = 5.0
"""Pause between attempts at most: a database that is back is noticed in seconds, one that is away costs
nothing."""

WARNING_SECONDS = 60.0
"""One warning a minute while the database is away: enough to see that it lasts, not enough to fill a log."""

UNSTORABLE = (DataError, IntegrityError, ValueError, TypeError, OverflowError)
"""Errors of a record rather than of the database: no later attempt would succeed."""

log = logging.getLogger("relay.ledger")


class Ledger:
    """One background writer of usage records; a process needs one.

    `record` takes the newest state of a session; the writer thread takes all that waits, keeps the newest of
    each session and upserts it in one transaction, through a connection of its own. What has ended stays as
    it was first written, whatever comes later, from whatever process.

    The database may be away: records then wait in memory, one per session, are tried again with growing
    pauses and written in order when it is back; one warning says so, and one line when it is over. A single
    record that the database refuses is reported with its content and left out, so that it can't hold up the
    others. The `session_closed` line (see `lines`) waits for neither.

    The thread starts with the first record and ends in `close`, or at the exit of the process, which waits
    `RELAY_LEDGER_EXIT_SECONDS` for it at most.
    """

    def __init__(
        self,
        using: str = DEFAULT_DB_ALIAS,
        *,
        batch_seconds: float | None = None,
        exit_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        """`batch_seconds` and `exit_seconds` are settings unless given. `clock` is monotonic, in seconds;
        `pause` waits that many seconds or less (a flush cuts it short)."""
        settings = conf.current()
        self._using = using
        self._batch_seconds = settings.ledger_batch_seconds if batch_seconds is None else batch_seconds
        self._exit_seconds = settings.ledger_exit_seconds if exit_seconds is None else exit_seconds
        self._clock = clock
        self._pause = pause or self._wait
        self._hurry = threading.Event()
        self._lines = LinePrinter()

        # Under this lock, which is only ever held for moments:
        self._changed = threading.Condition()
        self._waiting: dict[UUID, SessionRecord] = {}
        self._recorded = 0  # calls of `record` so far
        self._written = 0  # how many of those are in the database, counted from the first
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._giving_up = False

        # Replaced, never changed, by the writer thread alone:
        self._batch: dict[UUID, SessionRecord] = {}
        self._failures = 0
        self._away_since = 0.0
        self._warned_at = float("-inf")

    def record(self, record: SessionRecord) -> None:
        """Have `record` written as its session's newest state; never blocks. Any thread may call it."""
        with self._changed:
            self._waiting[record.session_uuid] = merge(self._waiting.get(record.session_uuid), record)
            self._recorded += 1
            self._stopping = self._giving_up = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="relay-ledger", daemon=True)
                self._thread.start()
                atexit.register(self._close_at_exit)
            self._changed.notify_all()
        if record.closed:
            self._lines.put(record)

    @property
    def unwritten(self) -> int:
        """Sessions with something that is not in the database yet."""
        with self._changed:
            return len(self._waiting.keys() | self._batch.keys())

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all that was recorded before is written, rows and lines alike.

        Blocks the calling thread: not for an event loop. False when time was too short; nothing is lost then.
        """
        deadline = self._clock() + timeout
        with self._changed:
            upto = self._recorded
            self._hurry.set()
            written = self._changed.wait_for(lambda: self._written >= upto, timeout)
        return self._lines.flush(max(0.0, deadline - self._clock())) and written

    def close(self, timeout: float) -> bool:
        """As `flush`, then end the thread. What could not be written is counted in one error line.

        Records that come later start the thread again.
        """
        deadline = self._clock() + timeout
        written = self.flush(timeout)
        with self._changed:
            thread = self._thread
            self._stopping = True
            self._giving_up = not written
            self._hurry.set()
            self._changed.notify_all()
        atexit.unregister(self._close_at_exit)
        if thread is not None:
            thread.join(max(0.0, deadline - self._clock()))
        self._lines.close(max(0.0, deadline - self._clock()))
        if missing := self.unwritten:
            log.error(
                "the ledger stops with %d usage records not written: %s is away", missing, self._database()
            )
        return written

    def _close_at_exit(self) -> None:
        self.close(self._exit_seconds)

    # From here on: the writer thread.

    def _run(self) -> None:
        try:
            while self._there_is_work():
                self._pause(self._retry_seconds() if self._failures else self._batch_seconds)
                upto = self._take()
                if self._attempt():
                    with self._changed:
                        self._batch = {}
                        self._written = upto
                        self._changed.notify_all()
        finally:
            self._drop_connection()

    def _there_is_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._batch or self._stopping)
            if self._giving_up or not (self._waiting or self._batch):
                self._thread = None  # under the lock: a record either sees this or was seen
                return False
            return True

    def _take(self) -> int:
        """Add what waits to what is still to be written; gives the number of records so far."""
        with self._changed:
            news, self._waiting = self._waiting, {}
            upto = self._recorded
            failed, self._batch = self._batch, {**self._batch, **news}
        # Outside the lock, which the event loop takes too.
        both = {uuid: merge(failed[uuid], newer) for uuid, newer in news.items() if uuid in failed}
        self._batch = {**self._batch, **both}
        return upto

    def _attempt(self) -> bool:
        try:
            close_old_connections()
            try:
                rows.write(self._batch.values(), self._using)
            except UNSTORABLE:
                self._write_each()
        except Exception as error:  # noqa: BLE001 - a writer that ends on a surprise would lose all that comes
            self._drop_connection()
            self._note_failure(error)
            return False
        self._note_success()
        return True

    def _write_each(self) -> None:
        """One by one, so that a record that can't be stored stands in nobody's way."""
        for record in list(self._batch.values()):
            try:
                rows.write([record], self._using)
            except UNSTORABLE as error:
                log.error(
                    "a usage record can't be stored and is left out (%s): %s", _first_line(error), record
                )
                self._batch = {uuid: kept for uuid, kept in self._batch.items() if kept is not record}

    def _note_failure(self, error: Exception) -> None:
        now = self._clock()
        self._failures += 1
        if self._failures == 1:
            self._away_since = now
        if now - self._warned_at >= WARNING_SECONDS:
            self._warned_at = now
            log.warning(
                "usage records wait, %d so far: %s can't be written to (%s: %s)",
                len(self._batch),
                self._database(),
                type(error).__name__,
                _first_line(error),
            )

    def _note_success(self) -> None:
        if self._failures:
            away = self._clock() - self._away_since
            log.info(
                "%s is back after %.1f s: %d usage records written", self._database(), away, len(self._batch)
            )
        self._failures = 0

    def _retry_seconds(self) -> float:
        # The exponent has a bound as well: 2 ** failures of a day's outage is no float any more.
        return min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 16))

    def _drop_connection(self) -> None:
        with suppress(Exception):  # it may be broken in any way; a new one is made when needed
            connections[self._using].close()

    def _wait(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()

    def _database(self) -> str:
        return f"the {connections[self._using].display_name} database"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
