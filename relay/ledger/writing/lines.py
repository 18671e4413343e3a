"""The `session_closed` lines: printed by a thread of their own, so that neither a database that hangs holds
up a line, nor a stdout that nobody reads holds up the event loop or a row.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from relay.ledger.records import SessionRecord, log_line

REMEMBERED = 16_384
"""Sessions whose line is known to be printed: a second close comes within seconds of the first, and this is
minutes of ends at hundreds a second, in about 2 MB."""

usage_log = logging.getLogger("relay.usage")


class LinePrinter:
    """Prints each closed session's line once, in order, through the logger `relay.usage` at INFO.

    While stdout takes nothing, lines wait here, one record each; the rows are written all the same.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[SessionRecord | Callable[[], None]] = deque()
        self._printing = 0
        self._printed: dict[object, None] = {}  # by session, oldest first
        self._thread: threading.Thread | None = None
        self._stopping = False

    def put(self, record: SessionRecord) -> None:
        """Have the line of a closed session printed, unless it was; never blocks. Any thread may call it."""
        with self._changed:
            if record.session_uuid in self._printed:
                return
            self._printed[record.session_uuid] = None
            if len(self._printed) > REMEMBERED:
                del self._printed[next(iter(self._printed))]
            self._waiting.append(record)
            self._stopping = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="relay-usage-lines", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def after_these(self, tell: Callable[[], None]) -> None:
        """Have `tell()` called once when all lines put so far are printed: at once if they are, else by the
        thread that prints them. It must neither block nor fail."""
        with self._changed:
            if self._waiting or self._printing:
                self._waiting.append(tell)
                return
        tell()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all lines are printed; whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._printing, timeout)

    def close(self, timeout: float) -> bool:
        """As `flush`; the thread ends with the last line."""
        done = self.flush(timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                self._printing = 0
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    self._thread = None
                    return
                items, self._waiting = self._waiting, deque()
                self._printing = len(items)
            for item in items:
                if isinstance(item, SessionRecord):
                    usage_log.info(log_line(item))
                else:
                    item()
