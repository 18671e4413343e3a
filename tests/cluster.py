"""`make cluster`: the whole relay on this machine, from wheels alone and from the files that production uses.

Caddy in front, one relay node per core, Valkey and PostgreSQL. Runs until Ctrl-C, and leaves nothing behind.
"""

import contextlib
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lemcloud.settings")
django.setup()

from tests.balancer import Balancer, Caddy
from tests.databases import Postgres, Valkey
from tests.nodes.cluster import Cluster


@dataclass(frozen=True)
class Whole:
    """All parts, running."""

    cluster: Cluster
    balancer: Balancer
    postgres: Postgres
    valkey: Valkey


@contextlib.contextmanager
def whole(
    folder: Path, nodes: int, environ: dict[str, str] | None = None, tls: bool = False
) -> Iterator[Whole]:
    """Caddy, so many nodes, Valkey and PostgreSQL for the length of a block."""
    with contextlib.ExitStack() as stack:
        postgres, valkey = Postgres(), Valkey()
        stack.callback(postgres.remove)
        postgres.start()
        valkey.start()
        stack.callback(valkey.stop)
        settings = {"RELAY_TRUSTED_PROXIES": "127.0.0.1,::1", **(environ or {})}
        cluster = Cluster(folder / "nodes", [valkey.url] * nodes, postgres.create("relay"), settings)
        stack.callback(cluster.stop)
        cluster.start()
        addresses = [f"{node.host}:{node.port}" for node in cluster.nodes]
        caddy = Caddy(folder / "caddy", addresses, tls=tls)
        stack.callback(caddy.stop)
        caddy.start()
        yield Whole(cluster, caddy, postgres, valkey)


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="lem-cluster-") as folder:
        print("starting PostgreSQL, Valkey, the nodes and Caddy ...", flush=True)
        key = {"SECRET_KEY": secrets.token_urlsafe(48)}  # it's a server like any other while it runs
        with whole(Path(folder), os.cpu_count() or 1, key) as parts:
            session = "demo"
            token = parts.cluster.manage("issue_token", "--session", session).stdout.strip()
            print(f"""
connect both legs to   {parts.balancer.url}/relay/{session}
with this token        {token}
for example            websocat "{parts.balancer.url}/relay/{session}?token=$TOKEN"
readiness              {parts.balancer.http_url}/ready
nodes                  {' '.join(node.http_url for node in parts.cluster.nodes)}
logs                   {folder}

Ctrl-C ends it.""", flush=True)  # fmt: skip
            stop.wait()
            print("ending ...", flush=True)


if __name__ == "__main__":
    sys.exit(main())
