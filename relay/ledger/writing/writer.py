"""The ledger: takes records from any thread without blocking and writes them behind, in batches."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, connections

from relay import conf
from relay.ledger.records import SessionRecord, merge
from relay.ledger.writing import replay
from relay.ledger.writing.deadline import Deadline
from relay.ledger.writing.exits import at_exit, not_at_exit
from relay.ledger.writing.heart import Heart
from relay.ledger.writing.lines import LinePrinter
from relay.ledger.writing.spool import Entry, Spool, node_of

FIRST_RETRY_SECONDS = 0.1
"""Pause after the first failure, doubled with each further one: a dropped connection costs next to none."""

CONNECTION_SECONDS = 60.0
"""How long a connection is kept: to open one takes longer than to write a batch, ten times a second; and a
database that has moved, or a pool in front of it, is followed within a minute."""

LONGEST_RETRY_SECONDS = 5.0
"""Pause between attempts at most: a database that is back is noticed in seconds, one that is away costs
nothing."""

WARNING_SECONDS = 60.0
"""One warning a minute while the database is away: enough to see that it lasts, not enough to fill a log."""

log = logging.getLogger("relay.ledger")


class Ledger:
    """One background writer of usage records; a process needs one.

    `record` takes the newest state of a session; the writer thread takes all that waits, keeps the newest of
    each session and upserts it in one transaction, through a connection of its own. What has ended stays as
    it was first written, whatever comes later, from whatever process.

    The database may be away: records then go to the spool, or wait in memory, one per session, where there
    is none or it can't be written; it is tried again with growing pauses, and all is written in order when
    it is back; one warning says so, and one line when it is over. A database that takes longer than
    `RELAY_LEDGER_WRITE_SECONDS` is away. A single record that the database refuses is reported with its
    content and left out, so that it can't hold up the others.

    The `session_closed` line (see `lines`) is printed when the end is safe in the database or the spool: were
    the process killed in between, the session would be closed again, as `node_lost` and with another line.
    Where neither can be written it's printed all the same, and at once where there is no spool.

    With a name of its `node`, the writer leaves a heartbeat at each checkpoint, and then looks after what
    dead nodes left: their spools on this host, and their live rows (see `heart`). The other way round, a node
    that can't reach the database for `RELAY_NODE_LOST_SECONDS` is dead for the others, and what the database
    knows as live is closed there. So the line of such a session is printed only when its row is: until then
    it waits in the spool, and is printed by who replays that. So does the line of a session across two nodes,
    which the other one may close. A session of this node that the database has never heard of is this
    process's alone: its line is printed as soon as the record is on the disk.

    The thread starts with `start` or the first record and ends in `close`, or at the exit of the process,
    which waits `RELAY_LEDGER_EXIT_SECONDS` for it at most.
    """

    def __init__(
        self,
        using: str = DEFAULT_DB_ALIAS,
        *,
        node: str = "",
        spool_dir: Path | None = None,
        batch_seconds: float | None = None,
        exit_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] | None = None,
    ) -> None:
        """`batch_seconds` and `exit_seconds` are settings unless given. `clock` is monotonic, in seconds;
        `pause` waits that many seconds or less (a flush cuts it short)."""
        self._settings = settings = conf.current()
        self._using = using
        self._node = node
        self._batch_seconds = settings.ledger_batch_seconds if batch_seconds is None else batch_seconds
        self._exit_seconds = settings.ledger_exit_seconds if exit_seconds is None else exit_seconds
        self._clock = clock
        self._pause = pause or self._wait
        self._hurry = threading.Event()
        self._lines = LinePrinter()
        self._deadline = Deadline(using, settings.ledger_write_seconds)

        # Under this lock, which is only ever held for moments:
        self._changed = threading.Condition()
        self._waiting: dict[UUID, SessionRecord] = {}
        self._recorded = 0  # calls of `record` so far
        self._written = 0  # how many of those are in the database, counted from the first
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._giving_up = False
        self._flushing = False
        self._lines_due: set[UUID] = set()  # closed, and not printed yet
        # Who asked when a session is safe, and whether its line has to be printed, too.
        self._to_tell: list[tuple[UUID, Future[None], bool]] = []

        # Of the writer thread alone; what others read is replaced, never changed:
        self._batch: dict[UUID, SessionRecord] = {}
        self._taken = 0  # how many records it has taken out of those that wait
        self._spool = (
            Spool(spool_dir, node or "ledger", settings.spool_bytes) if spool_dir is not None else None
        )
        self._spool_error = ""
        self._spool_warned_at = float("-inf")
        self._failures = 0
        self._retry_at = 0.0
        self._away_since = 0.0
        self._warned_at = float("-inf")
        self._connected_at = float("-inf")
        self._heart = Heart(node, using, self._deadline, clock)
        # What the database may know as live; others look at it, too.
        self._known: set[UUID] = set()

    def start(self) -> None:
        """Begin to look after what dead nodes left, and to replay spools, before the first record comes."""
        with self._changed:
            self._start()

    def _start(self) -> None:
        self._stopping = self._giving_up = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="relay-ledger", daemon=True)
            self._thread.start()
            at_exit(self._close_at_exit)
        self._changed.notify_all()

    def record(self, record: SessionRecord) -> None:
        """Have `record` written as its session's newest state; never blocks. Any thread may call it."""
        with self._changed:
            self._waiting[record.session_uuid] = merge(self._waiting.get(record.session_uuid), record)
            self._recorded += 1
            wait = record.closed and (self._spool is not None or bool(self._node))
            if wait:
                self._lines_due.add(record.session_uuid)
            self._start()
        if record.closed and not wait:
            self._lines.put(record)

    def safe(self, session: UUID, *, printed: bool = False) -> "Future[None]":
        """Done when what was recorded of `session` is in the database or the spool; perhaps at once.

        With `printed` also what is due of its line is printed by then. Any thread may ask; never blocks.
        """
        future: Future[None] = Future()
        with self._changed:
            waits = session in self._waiting or session in self._batch
            if waits:
                self._to_tell.append((session, future, printed))
        if not waits:
            self._tell(future, printed)
        return future

    def _tell(self, future: "Future[None]", printed: bool) -> None:
        def tell() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

        if printed:
            self._lines.after_these(tell)
        else:
            tell()

    def _tell_what_is_safe(self) -> None:
        with self._changed:
            unsafe = self._waiting.keys() | self._batch.keys() if self._to_tell else set()
            safe = [entry for entry in self._to_tell if entry[0] not in unsafe]
            self._to_tell = [entry for entry in self._to_tell if entry[0] in unsafe]
        for _, future, printed in safe:
            self._tell(future, printed)

    @property
    def unwritten(self) -> int:
        """Sessions with something that is in neither the database nor the spool yet."""
        with self._changed:
            return len(self._waiting.keys() | self._batch.keys())

    @property
    def spooled_bytes(self) -> int:
        """Size of what is in the spool and not in the database."""
        return self._spool.size if self._spool is not None else 0

    @property
    def spool_error(self) -> str:
        """Why records wait in memory alone although there is a spool; empty where they don't."""
        return self._spool_error

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all that was recorded before is written, rows and lines alike.

        Blocks the calling thread: not for an event loop. False when time was too short; nothing is lost then.
        """
        deadline = self._clock() + timeout
        with self._changed:
            upto = self._recorded
            self._flushing = self._written < upto
            self._hurry.set()
            self._changed.notify_all()
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
        not_at_exit(self._close_at_exit)
        if thread is not None:
            thread.join(max(0.0, deadline - self._clock()))
        if self.unwritten:
            self._save_what_waits()
        self._lines.close(max(0.0, deadline - self._clock()))
        if missing := self.unwritten:
            log.error(
                "the ledger stops with %d usage records not written: %s is away", missing, self._database()
            )
        elif self.spooled_bytes:
            log.warning(
                "%s is away: usage records are kept in %s and written at the next start",
                self._database(),
                self._spool.path if self._spool is not None else "",
            )
        return written

    def _close_at_exit(self) -> None:
        self.close(self._exit_seconds)

    def _is_anyones(self, record: SessionRecord) -> bool:
        """Whether another node may close the session, should it take this one for dead."""
        return bool(self._node) and (record.across_nodes or record.session_uuid in self._known)

    def _save_what_waits(self) -> None:
        """At the end, when the writer hangs in the database: what it still has goes to a spool of its own."""
        with self._changed:
            records = dict(self._batch)
            for uuid, record in self._waiting.items():
                records[uuid] = merge(records.get(uuid), record)
            due = self._due_of(records)
        if self._spool is not None:
            spool = Spool(self._spool.folder, self._node or "ledger", self._settings.spool_bytes)
            anyones = {uuid for uuid in due if self._is_anyones(records[uuid])}
            with suppress(OSError):
                kept = spool.append([Entry(record, uuid in anyones) for uuid, record in records.items()])
                due -= anyones & kept
                with self._changed:
                    self._waiting = {u: r for u, r in self._waiting.items() if u not in kept}
                    self._batch = {u: r for u, r in self._batch.items() if u not in kept}
            spool.close()
        self._print([records[uuid] for uuid in due])
        self._tell_what_is_safe()

    # From here on: the writer thread.

    def _run(self) -> None:
        try:
            while not self._ended():
                while self._there_is_work():
                    without_spool = self._failures and not self._spool_helps
                    self._pause(self._retry_seconds() if without_spool else self._batch_seconds)
                    self._step()
                self._leave()
        finally:
            self._drop_connection()

    def _step(self) -> None:
        """Get all that waits into the database, or the spool."""
        self._take()
        try_now = self._is_time_to_try() or not self._failures
        if self._failures and self._spool_helps:
            self._put_into_spool()  # first: an attempt on a database that hangs takes its time
        if (try_now or not self._spool_helps) and self._attempt():
            with self._changed:
                self._batch = {}
                self._written = self._taken
                self._changed.notify_all()
        self._tell_what_is_safe()

    @property
    def _spool_helps(self) -> bool:
        return self._spool is not None and not self._spool_error

    def _is_time_to_try(self) -> bool:
        with self._changed:
            flushing, self._flushing = self._flushing, False
        return flushing or self._clock() >= self._retry_at

    def _there_is_work(self) -> bool:
        """Wait for some; False when the thread is to end."""
        with self._changed:
            while not self._giving_up:
                spooled = bool(self.spooled_bytes)
                due_at = self._retry_at if self._failures else self._heart.due_at
                if self._waiting or self._batch or (spooled and self._flushing):
                    return True
                if self._stopping and not spooled:
                    return False
                if self._clock() >= due_at:
                    return True
                self._changed.wait(min(due_at - self._clock(), threading.TIMEOUT_MAX))
            return False

    def _ended(self) -> bool:
        with self._changed:
            ended = self._giving_up or (self._stopping and not (self._waiting or self._batch))
            if ended:
                self._thread = None  # under the lock: a record either sees this or was seen
            return ended

    def _leave(self) -> None:
        """All is written, and none of this node's sessions goes on: what is live of it is nobody's."""
        if not self._giving_up:
            with suppress(Exception):
                self._heart.leave()

    def _take(self) -> None:
        """Add what waits to what is still to be written."""
        with self._changed:
            news, self._waiting = self._waiting, {}
            self._taken = self._recorded
            failed, self._batch = self._batch, {**self._batch, **news}
        # Outside the lock, which the event loop takes too.
        both = {uuid: merge(failed[uuid], newer) for uuid, newer in news.items() if uuid in failed}
        self._batch = {**self._batch, **both}

    def _attempt(self) -> bool:
        try:
            self._connect()
            self._heart.beat()
            if self._spool is not None and self._spool.size:
                self._write_entries(self._spool.entries(), own=True)
                self._spool.clear()
            self._spool_error = ""
            self._write_entries(self._entries(), own=True)
            if self._heart.search_due:
                self._look_after_the_dead()
        except Exception as error:  # noqa: BLE001 - a writer that ends on a surprise would lose all that comes
            self._drop_connection()
            self._note_failure(error)
            _release(error)
            self._put_into_spool()
            return False
        self._note_success()
        return True

    def _due_of(self, records: dict[UUID, SessionRecord]) -> set[UUID]:
        """Those whose lines are due. A session may have ended since its record was taken."""
        with self._changed:
            return {uuid for uuid, record in records.items() if record.closed and uuid in self._lines_due}

    def _entries(self) -> list[Entry]:
        """What is to be written, with what is due of it."""
        due = self._due_of(self._batch)
        return [Entry(record, uuid in due) for uuid, record in self._batch.items()]

    def _write_entries(self, entries: Iterable[Entry], *, own: bool) -> None:
        for batch in replay.batches(entries):
            self._heart.beat()  # writing all of a large spool may take long
            live = {e.record.session_uuid for e in batch if e.record.owned and not e.record.closed}
            if own:
                self._known |= live
            with self._deadline:
                to_print = replay.write(batch, self._using, tried=own and self._failures > 0)
            self._print(to_print)
            if own:
                self._known -= {e.record.session_uuid for e in batch} - live
            with self._changed:
                self._lines_due.difference_update(e.record.session_uuid for e in batch if e.line_due)

    def _print(self, records: Collection[SessionRecord]) -> None:
        for record in records:
            self._lines.put(record)
        with self._changed:
            self._lines_due.difference_update(record.session_uuid for record in records)

    def _put_into_spool(self) -> None:
        """Get what can't be written now onto the disk and out of memory."""
        records, due = self._batch, self._due_of(self._batch)
        anyones = {uuid for uuid in due if self._is_anyones(records[uuid])}
        if self._spool is None:
            self._print([records[uuid] for uuid in due - anyones])
            return
        if not records:
            return
        try:
            kept = self._spool.append([Entry(record, uuid in anyones) for uuid, record in records.items()])
            error = "" if len(kept) == len(records) else "it is full"
        except OSError as failed:
            kept, error = set(), failed.strerror or type(failed).__name__
        self._batch = {uuid: record for uuid, record in records.items() if uuid not in kept}
        with self._changed:
            self._lines_due -= due & kept
        # Where something is not kept, nothing but its line would be left if the process were killed.
        self._print([records[uuid] for uuid in due - (anyones & kept)])
        self._spool_error = error
        if error and self._clock() - self._spool_warned_at >= WARNING_SECONDS:
            self._spool_warned_at = self._clock()
            log.error(
                "the spool %s can't be written (%s): %d usage records wait in memory",
                self._spool.path,
                error,
                len(self._batch),
            )

    def _look_after_the_dead(self) -> None:
        """Replay the spools and close the sessions of nodes that are no more."""
        dead = set()
        if self._spool is not None:
            for path in replay.abandoned_in(self._spool.folder, but=self._spool.path):
                try:
                    with replay.taken_over(path) as entries:
                        if entries is not None:
                            self._write_entries(entries, own=False)
                            dead.add(node_of(path))
                except OSError as error:
                    log.warning("the spool %s of another process can't be read: %s", path, error.strerror)
        for settled in self._heart.settle(dead):
            self._print(settled)

    # The database

    def _note_failure(self, error: Exception) -> None:
        now = self._clock()
        self._failures += 1
        self._retry_at = now + self._retry_seconds()
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
            log.info("%s is back after %.1f s: all usage records are written", self._database(), away)
        self._failures = 0

    def _retry_seconds(self) -> float:
        # The exponent has a bound as well: 2 ** failures of a day's outage is no float any more.
        return min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 16))

    def _connect(self) -> None:
        """Have a connection, and keep it for many batches, whatever Django's settings say about requests'."""
        connection = connections[self._using]
        if self._clock() - self._connected_at > CONNECTION_SECONDS:
            self._drop_connection()
        if connection.connection is None:
            with self._deadline:
                connection.ensure_connection()
            self._connected_at = self._clock()

    def _drop_connection(self) -> None:
        with suppress(Exception):  # it may be broken in any way; a new one is made when needed
            connections[self._using].close()

    def _wait(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()

    def _database(self) -> str:
        return f"the {connections[self._using].display_name} database"


def _release(error: BaseException | None) -> None:
    """Let go of what the frames of a failed attempt hold.

    psycopg's error is in a cycle with the frame that tried to connect: its socket would stay open until the
    garbage collector comes by, one more for each attempt.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
