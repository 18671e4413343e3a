"""Fixtures of the unit tests."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from unittest.mock import Mock

import pytest

from relay import conf, sessions
from relay.rendezvous.memory import MemoryRendezvous


@pytest.fixture
def limits() -> dict[str, Any]:
    """Settings of the relay, by their names in `relay.conf`; a test module may have its own."""
    return {}


@pytest.fixture
def recorder() -> Mock:
    """In place of the ledger: what it's told, it keeps, and that is safe at once."""
    safe: Future[None] = Future()
    safe.set_result(None)
    return Mock(spool_error="", safe=Mock(return_value=safe))


@pytest.fixture
def here(
    recorder: Mock, limits: dict[str, Any], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sessions.Sessions]:
    """The sessions of a process that has nothing but itself."""
    settings.RELAY = limits
    conf.current.cache_clear()
    made = sessions.Sessions(conf.current(), MemoryRendezvous(), recorder)
    monkeypatch.setattr(sessions, "of_this_process", lambda: made)
    yield made
    conf.current.cache_clear()
