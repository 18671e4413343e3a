"""Servers with the application of `applications`: Daphne as it comes, and ours."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.certificates import self_signed
from tests.processes import ServerProcess, free_port
from tests.servers.wire import Wire

STOCK, OURS = "stock", "ours"

SMALL = {
    "SECRET_KEY": "x" * 40,
    "RELAY_CLOSE_SECONDS": "2",
    "RELAY_STALL_SECONDS": "1",
    "RELAY_DRAIN_SECONDS": "3",
}
"""Settings under which what has to time out does so soon."""

Start = Callable[..., ServerProcess]


def daphne(kind: str, folder: Path, *options: str, clean: bool = True, **environ: str) -> ServerProcess:
    """A server of this kind, with options of the command line and with settings."""
    listen = () if any(option.startswith("ssl:") for option in options) else ("-p", "{port}")
    if kind == STOCK and "--access-log" not in options:
        options += ("--access-log", os.devnull)  # it isn't JSON
    command = ["daphne", *listen, *options, f"tests.servers.{kind}:application"]
    return ServerProcess(command, folder, SMALL | environ, clean=clean and kind == OURS)


@pytest.fixture(scope="module", params=[STOCK, OURS])
def either(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Each of the two, for what is known of the first and must not be true of the second."""
    with daphne(request.param, tmp_path_factory.mktemp(request.param), clean=False) as server:
        yield server


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Our server, shared; its log has to be clean."""
    with daphne(OURS, tmp_path_factory.mktemp(OURS)) as server:
        yield server


@pytest.fixture(params=[STOCK, OURS])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """Each of the two, just started: for what is seen in its memory."""
    with daphne(request.param, tmp_path, clean=False) as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server for this test alone."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, *options, **environ: stack.enter_context(
            daphne(kind, tmp_path, *options, **environ)
        )


def is_ours(server: ServerProcess) -> bool:
    """Whether this one promises more than Daphne as it comes."""
    return "tests.servers.ours:" in server.command[-1]


def get(server: ServerProcess, path: str) -> httpx.Response:
    """One HTTP request on a connection of its own."""
    return httpx.get(f"http://127.0.0.1:{server.port}{path}", headers={"Connection": "close"})


def growth_mib(server: ServerProcess, before: float, enough: float, seconds: float = 2.0) -> float:
    """How far its memory has grown when that is `enough`, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while (grown := resident_mib(server) - before) < enough and time.monotonic() < deadline:
        time.sleep(0.05)
    return grown


def resident_mib(server: ServerProcess) -> float:
    """Memory of the server process."""
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


@pytest.fixture(scope="module", params=["tcp", "tls"])
def server(request, tmp_path_factory):
    """A server, with `connect` to make a client of it."""
    folder = tmp_path_factory.mktemp(request.param)
    options = ()
    port = None
    if request.param == "tls":
        port = free_port()
        key, certificate = self_signed(folder)
        options = ("-e", f"ssl:{port}:privateKey={key}:certKey={certificate}:interface=127.0.0.1")
    with daphne(OURS, folder, "-p", "{port}", *options) as running:
        running.connect = lambda path, **kw: Wire(port or running.port, path, tls=bool(port), **kw)
        yield running
