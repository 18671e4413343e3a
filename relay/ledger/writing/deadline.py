"""A bound on how long the database may take: a connection that hangs is cut, and fails as a lost one does."""

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from django.db import connections


class Deadline:
    """What is done in its `with` block takes about `seconds` at most; for one thread, and not nested.

    A PostgreSQL that is stopped in its tracks, or whose host has vanished, answers nothing, and nothing in
    its client library bounds the wait: so the connection is shut down, which ends it with an error. SQLite
    is told how long to wait for a lock.

    A thread watches over PostgreSQL. There are many blocks a second, so it isn't woken for each: it looks
    every `seconds`, or when a block is due that it knows of, and ends when it finds none.
    """

    def __init__(self, using: str, seconds: float) -> None:
        self._using = using
        self._seconds = seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._guarded: Any = None  # the connection, within a block
        self._due = 0.0
        self._told: Any = None  # SQLite's connection that knows how long to wait

    def __enter__(self) -> None:
        connection = connections[self._using]
        if connection.vendor == "postgresql":
            with self._lock:
                self._guarded, self._due = connection, time.monotonic() + self._seconds
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, name="relay-deadline", daemon=True)
                    self._thread.start()
        elif connection.vendor == "sqlite" and (
            connection.connection is None or connection.connection is not self._told
        ):
            with connection.cursor() as cursor:
                cursor.execute(f"PRAGMA busy_timeout = {round(self._seconds * 1000)}")
            self._told = connection.connection

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._guarded = None

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._guarded is None:
                    self._thread = None
                    return
                left = self._due - time.monotonic()
                if left <= 0:
                    _cut(self._guarded.connection)
                    # Again and again: while it's not connected yet, the time-out for that counts.
                    left = self._seconds
                    self._due = time.monotonic() + left
            time.sleep(left)


def _cut(connection: Any) -> None:
    # There may be none yet, or one that is closed just now.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as own:
        own.shutdown(socket.SHUT_RDWR)
