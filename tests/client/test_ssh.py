"""OpenSSH through the relay: a login, a command and files, by `forward` and as ssh's ProxyCommand.

The server is Debian's sshd, as a process of the test's own: its keys, its settings and its port, on loopback,
with one key that may log in. The machine's own ssh is neither asked nor changed.
"""

import contextlib
import getpass
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.client.test_command_line import Person, finish
from tests.relays import START_SECONDS, Relay, free_port

pytestmark = pytest.mark.system

SSHD = "/usr/sbin/sshd"
"""By its whole path, as it starts itself again for each connection."""


class Sshd:
    """An sshd on a port of its own, and what its one user needs to get in."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._log = folder / "log"
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
            )
        self._config = folder / "config"
        self._config.write_text(
            f"""\
ListenAddress 127.0.0.1:{self.port}
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "user.pub"}
PidFile none
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""
        )
        (folder / "known_hosts").write_text(f"there {(folder / 'host.pub').read_text()}")

    @contextlib.contextmanager
    def running(self) -> Iterator["Sshd"]:
        """Listening for the length of the block."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd locks strangers in
        process = subprocess.Popen([SSHD, "-D", "-E", str(self._log), "-f", str(self._config)])
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(ConnectionRefusedError), self.connect():
                    break
                assert process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)
            yield self
        finally:
            process.terminate()
            process.wait(START_SECONDS)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def options(self, **more: str) -> list[str]:
        """Of ssh and scp: nothing of this machine's own, and a host key that has to be the right one."""
        options = {
            "IdentityFile": str(self._folder / "user"), "IdentitiesOnly": "yes", "BatchMode": "yes",
            "UserKnownHostsFile": str(self._folder / "known_hosts"), "HostKeyAlias": "there",
            "StrictHostKeyChecking": "yes", "LogLevel": "ERROR", **more,
        }  # fmt: skip
        return [
            "-F",
            "none",
            *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
        ]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")).running() as sshd:
        yield sshd


def log_in_and_copy(
    person: Person,
    options: list[str],
    there: Path,
    answered: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """A command's output and status, a file over there by scp, and back by `cat`; each a login of its own."""

    def run(*command: str) -> tuple[int, bytes, bytes]:
        with answered():
            done = subprocess.run(
                command, cwd=person.home, env=person.environ, capture_output=True, timeout=60
            )
        return done.returncode, done.stdout, done.stderr

    content = os.urandom(8_000_000)
    digest = hashlib.sha256(content).digest()
    (person.home / "file").write_bytes(content)
    login = f"{getpass.getuser()}@127.0.0.1"
    assert run("ssh", *options, login, "echo one; echo two >&2; exit 7") == (7, b"one\n", b"two\n")
    assert run("scp", "-q", *options, "file", f"{login}:{there}") == (0, b"", b"")
    assert hashlib.sha256(there.read_bytes()).digest() == digest
    status, back, said = run("ssh", *options, login, f"cat {shlex.quote(str(there))}")
    assert (status, said) == (0, b"")
    assert hashlib.sha256(back).digest() == digest


def test_ssh_and_scp_work_through_forward_and_serve(
    daphne: Relay, sshd: Sshd, session_id: str, tmp_path: Path
) -> None:
    here, there = (Person(tmp_path / who, daphne.url) for who in ("here", "there"))
    target, port = f"127.0.0.1:{sshd.port}", free_port()
    serving = there.start("serve", "--allow", target, session_id)
    forward = here.start("forward", "-L", f"{port}:{target}", session_id)
    try:
        assert forward.stderr
        assert forward.stderr.readline().decode() == f"127.0.0.1:{port} leads to {target}\n"
        log_in_and_copy(here, sshd.options(Port=str(port)), tmp_path / "copy")
        assert (serving.poll(), forward.poll()) == (None, None)
    finally:
        for process in (forward, serving):
            process.kill()
            finish(process)


def test_a_pipe_is_ssh_s_proxy_command(daphne: Relay, sshd: Sshd, session_id: str, tmp_path: Path) -> None:
    here, there = (Person(tmp_path / who, daphne.url) for who in ("here", "there"))
    pipe = shlex.join([sys.executable, "-m", "relay.client", "--url", daphne.url, "pipe", session_id])

    @contextlib.contextmanager
    def answered() -> Iterator[None]:
        """The peer's pipe has sshd at its stdin and stdout, as socat or inetd connect it; once a login."""
        with sshd.connect() as connection:
            piping = there.start("pipe", session_id, stdin=connection, stdout=connection)
        try:
            yield
            # When it is through, ssh ends its ProxyCommand with a signal, which may look like a dropped line.
            assert piping.wait(START_SECONDS) in (0, 5)
        finally:
            finish(piping)

    log_in_and_copy(here, sshd.options(ProxyCommand=pipe), tmp_path / "copy", answered)
