"""A bound on how long the database may take: a connection that hangs is cut, and fails as a lost one does."""

import os
import socket
import threading
from contextlib import suppress
from typing import Any

from django.db import connections


class Deadline:
    """What is done in its `with` block takes about `seconds` at most; for one thread, and not nested.

    A PostgreSQL that is stopped in its tracks, or whose host has vanished, answers nothing, and nothing in
    its client library bounds the wait: so the connection is shut down, which ends it with an error. SQLite
    is told how long to wait for a lock.
    """

    def __init__(self, using: str, seconds: float) -> None:
        self._using = using
        self._seconds = seconds
        self._lock = threading.Lock()
        self._done = threading.Event()

    def __enter__(self) -> None:
        connection = connections[self._using]
        if connection.vendor == "postgresql":
            self._done = threading.Event()
            arguments = (connection, self._done)
            threading.Thread(target=self._watch, args=arguments, name="relay-deadline", daemon=True).start()
        elif connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute(f"PRAGMA busy_timeout = {round(self._seconds * 1000)}")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._done.set()

    def _watch(self, connection: Any, done: threading.Event) -> None:
        # Again and again: while it's not connected yet, the time-out for that counts.
        while not done.wait(self._seconds):
            with self._lock:
                if not done.is_set():
                    _cut(connection.connection)


def _cut(connection: Any) -> None:
    # There may be none yet, or one that is closed just now.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as own:
        own.shutdown(socket.SHUT_RDWR)
