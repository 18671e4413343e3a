"""The bound on how long the database may take: a late connection is cut, one in time never."""

import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from relay.ledger.writing import deadline
from relay.ledger.writing.deadline import Deadline
from tests.databases import Database

SECONDS = 5.0


class Watched:
    """A deadline over a PostgreSQL connection that is a socket; its thread is run by hand, its time given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.at: dict[float, Callable[[], object]] = {}
        """What happens at a moment at which the thread sleeps."""
        self.here, self.there = socket.socketpair()
        database = SimpleNamespace(vendor="postgresql", connection=self.here)
        self.threads: list[Callable[[], None]] = []
        thread = SimpleNamespace(start=lambda: None)
        monkeypatch.setattr(deadline, "connections", {"default": database})
        monkeypatch.setattr(
            deadline,
            "threading",
            SimpleNamespace(
                Lock=threading.Lock,
                Thread=lambda target, **options: self.threads.append(target) or thread,
            ),
        )
        monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep))
        self.deadline = Deadline("default", SECONDS)

    def _sleep(self, seconds: float) -> None:
        until = self.now + seconds
        for moment in sorted(self.at):
            if moment <= until:
                self.now = moment
                self.at.pop(moment)()
        self.now = until

    @property
    def cut(self) -> bool:
        self.there.setblocking(False)
        try:
            return self.there.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    made = Watched(monkeypatch)
    yield made
    made.here.close()
    made.there.close()


def test_a_connection_that_takes_too_long_is_cut(watched: Watched) -> None:
    seen: list[bool] = []
    watched.at[100 + SECONDS - 0.1] = lambda: seen.append(watched.cut)

    def too_late() -> None:
        seen.append(watched.cut)
        watched.deadline.__exit__()

    watched.at[100 + 2 * SECONDS] = too_late
    watched.deadline.__enter__()
    [watch] = watched.threads
    watch()
    assert seen == [False, True]


def test_a_connection_that_is_not_in_use_is_not_cut(watched: Watched) -> None:
    """It may be kept for a minute between two blocks."""
    watched.deadline.__enter__()
    watched.at[101] = watched.deadline.__exit__
    [watch] = watched.threads
    watch()
    assert not watched.cut
    with watched.deadline:
        assert len(watched.threads) == 2  # the first has found nothing to watch over, and ended


def test_each_block_has_the_whole_time(watched: Watched) -> None:
    def next_block() -> None:
        watched.deadline.__exit__()
        watched.deadline.__enter__()

    watched.deadline.__enter__()
    watched.at[100 + SECONDS - 1] = next_block
    watched.at[100 + 2 * SECONDS - 1.5] = watched.deadline.__exit__
    [watch] = watched.threads
    watch()
    assert not watched.cut


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_is_told_how_long_to_wait_for_a_lock_on_each_new_connection(database: Database) -> None:
    bound = Deadline("default", SECONDS)
    for _ in range(2):
        with bound:
            assert busy_timeout() == 5000
        connection.close()


def busy_timeout() -> Any:
    """In milliseconds."""
    with connection.cursor() as cursor:
        return cursor.execute("PRAGMA busy_timeout").fetchone()[0]
