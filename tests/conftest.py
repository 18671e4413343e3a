"""Fixtures of the whole suite."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from tests.databases import Valkey, _migrated, database, postgres
from tests.nodes.cluster import Cluster, clustered
from tests.relays import COMMANDS, Relay, running

__all__ = ["_migrated", "database", "postgres"]

TWO_NODES = "two nodes"
"""The path between legs on different nodes; the others are those within one process of each server."""


@pytest.fixture
def session_id() -> str:
    """A session id that no other test uses, so that tests can share a relay."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture(scope="session", params=list(COMMANDS))
def server(request: pytest.FixtureRequest) -> str:
    """Each server that the behaviour suite runs over."""
    return str(request.param)


@pytest.fixture(scope="session", params=[*COMMANDS, TWO_NODES])
def relay_path(request: pytest.FixtureRequest) -> str:
    """Each path that frames can take between two legs: the behaviour suite runs over all of them."""
    return str(request.param)


@pytest.fixture(scope="session")
def relay(
    relay_path: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay | Cluster]:
    """A relay with its default settings, shared by all tests."""
    with _with_path(relay_path, request, tmp_path_factory.mktemp("relay")) as relay:
        yield relay


@pytest.fixture(scope="module")
def small_relay(
    relay_path: str,
    request: pytest.FixtureRequest,
    limits: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Relay | Cluster]:
    """A relay with the `limits` of the module that uses it."""
    with _with_path(relay_path, request, tmp_path_factory.mktemp("small"), limits) as relay:
        yield relay


@contextlib.contextmanager
def _with_path(
    relay_path: str, request: pytest.FixtureRequest, folder: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Relay | Cluster]:
    if relay_path != TWO_NODES:
        with running(relay_path, folder, dict(environ or {})) as relay:
            yield relay
        return
    redis_url = request.getfixturevalue("redis_url")
    database_url = request.getfixturevalue("postgres").create(f"relay-{uuid4().hex[:8]}")
    with clustered(folder, [redis_url] * 2, database_url, environ) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Valkey server, which speaks Redis' protocol."""
    server = Valkey()
    server.start()
    yield server.url
    server.stop()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skip is a hole: it fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
