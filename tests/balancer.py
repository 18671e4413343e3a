"""Balancers for tests and for `make cluster`, from the files in lemcloud/deploy/balancers.

Caddy is from its wheel, HAProxy and nginx from Debian's packages, with ports and nodes of the test's own."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.relays import ROOT, START_SECONDS, free_port

FILES = ROOT / "lemcloud" / "deploy" / "balancers"


class Balancer:
    """One balancer process on a port of its own, with its files in `folder`."""

    command: Sequence[str | Path]
    environ: dict[str, str]
    tls = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.environ = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://localhost:{self.port}"

    @property
    def http_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    def start(self, with_nodes: bool = True) -> None:
        """Start it and wait until a node is ready behind it, or only until it listens where there is none."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environ, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever started it, who then stops it in order
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not (self._is_ready() if with_nodes else self._listens()):
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def _listens(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("localhost", self.port)):
            return True
        return False

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.http_url}/ready", verify=False, timeout=5).status_code == 200  # noqa: S501
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_SECONDS)
            self._process = None

    def output(self) -> str:
        """Its log."""
        return (self.folder / "log").read_text(encoding="utf-8")


class Caddy(Balancer):
    """Caddy with the file as it is: all that is the test's own comes from the environment."""

    config = FILES / "Caddyfile"

    def __init__(self, folder: Path, nodes: Sequence[str], tls: bool = False) -> None:
        super().__init__(folder)
        self.tls = tls
        caddy = Path(sys.executable).with_name("caddy")
        self.command = [caddy, "run", "--config", self.config, "--adapter", "caddyfile"]
        self.environ |= {
            "RELAY_SITE": "localhost" if tls else f"http://localhost:{self.port}",
            "RELAY_NODES": " ".join(nodes),
            "RELAY_HTTP_PORT": str(free_port()),
            "RELAY_HTTPS_PORT": str(self.port if tls else free_port()),
            "RELAY_CADDY_ADMIN": f"localhost:{free_port()}",
            "XDG_DATA_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "HOME": str(folder),
        }

    @property
    def authority(self) -> Path:
        """The certificate of Caddy's own authority, which clients have to trust."""
        return self.folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"

    def reload(self) -> None:
        """Have it read its file again, as an operator does."""
        command = [self.command[0], "reload", "--force", "--config", self.config, "--adapter", "caddyfile"]
        subprocess.run(command, env=self.environ, check=True, capture_output=True, timeout=START_SECONDS)


class HAProxy(Balancer):
    """HAProxy with the ports of the test put in, and without TLS."""

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        super().__init__(folder)
        text = (FILES / "haproxy.cfg").read_text(encoding="utf-8")
        text = replaced(text, r":443 ssl crt \S+", f"127.0.0.1:{self.port}")
        text = replaced(text, r"maxconn \d+", "maxconn 2000")  # what a test may open
        for number, node in enumerate(nodes, 1):
            for name in ("node", "any"):
                text = replaced(text, rf"server {name}{number} \S+", f"server {name}{number} {node}")
        config = self.folder / "haproxy.cfg"
        config.write_text(text, encoding="utf-8")
        self.command = ["/usr/sbin/haproxy", "-db", "-f", config]


class Nginx(Balancer):
    """nginx with the ports and folders of the test put in, and without TLS."""

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        super().__init__(folder)
        text = (FILES / "nginx.conf").read_text(encoding="utf-8")
        text = replaced(text, r"listen 443 ssl", f"listen 127.0.0.1:{self.port}")
        text = replaced(text, r"worker_rlimit_nofile \d+;", "")  # for root only
        text = replaced(text, r"worker_connections \d+", "worker_connections 500")
        text = replaced(text, r"ssl_certificate \s*\S+;", "")
        text = replaced(text, r"ssl_certificate_key \S+;", "")
        for number, node in enumerate(nodes, 1):
            text = replaced(text, rf"server 127\.0\.0\.1:800{number} ", f"server {node} ")
        config = self.folder / "nginx.conf"
        config.write_text(f"pid {self.folder}/nginx.pid;\n{text}", encoding="utf-8")
        self.command = [
            *("/usr/sbin/nginx", "-p", self.folder, "-c", config),
            *("-e", "stderr", "-g", "daemon off;"),
        ]


def replaced(text: str, pattern: str, new: str) -> str:
    """`text` with the one place that matches changed: a file that no longer has it is an error."""
    text, count = re.subn(pattern, new, text)
    assert count == 1, (pattern, count)
    return text
