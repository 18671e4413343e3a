"""Fixtures of the tests on many nodes."""

import resource
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.databases import Postgres, Valkey
from tests.nodes.cluster import Cluster, clustered
from tests.nodes.proxy import Proxy

PROXIED = 2
"""The node whose way to Redis goes through the proxy."""


@pytest.fixture(scope="session", autouse=True)
def _many_files() -> None:
    """Thousands of sockets, here and in the nodes that are started from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """A Valkey server of the module's own; a test that stops or pauses it starts it again."""
    server = Valkey()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def proxy(valkey: Valkey) -> Iterator[Proxy]:
    """The way of the third node to Valkey; without faults unless a test wants some."""
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Environment of the module's nodes; a module with limits of its own overrides it."""
    return {}


@pytest.fixture(scope="module")
def cluster(
    valkey: Valkey,
    proxy: Proxy,
    postgres: Postgres,
    settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """Three nodes, of which the third reaches Valkey through the proxy."""
    urls = [valkey.url, valkey.url, proxy.url]
    database_url = postgres.create(f"nodes-{uuid4().hex[:8]}")
    with clustered(tmp_path_factory.mktemp("cluster"), urls, database_url, settings) as cluster:
        yield cluster
