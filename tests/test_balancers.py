"""Each balancer in front of real nodes: where legs land, whose addresses are believed, and restarts."""

import asyncio
import contextlib
import json
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import psycopg
import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from relay.conf import RelaySettings
from tests.balancer import FILES, Balancer, Caddy, HAProxy, Nginx
from tests.behaviour.clients import connect
from tests.cluster import Whole, whole
from tests.relays import ROOT, START_SECONDS, Relay, free_port
from tests.tokens import token

SETTINGS = {"RELAY_DRAIN_SECONDS": "8", "RELAY_CLOSE_SECONDS": "1"}
"""A node that drains leaves its sessions six seconds, so that a test sees them go on."""

INVENTED = "198.51.100.66"
"""An address that a client claims to have."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """What `make cluster` starts, with three nodes."""
    with whole(tmp_path_factory.mktemp("whole"), 3, SETTINGS) as parts:
        yield parts


@pytest.fixture(
    scope="module",
    params=[
        "caddy",
        pytest.param("haproxy", marks=pytest.mark.system),
        pytest.param("nginx", marks=pytest.mark.system),
    ],
)
def balancer(
    request: pytest.FixtureRequest, parts: Whole, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balancer]:
    """Each balancer in front of the same nodes; the files of two of them have place for two."""
    if request.param == "caddy":
        yield parts.balancer
        return
    kind = {"haproxy": HAProxy, "nginx": Nginx}[request.param]
    nodes = [f"{node.host}:{node.port}" for node in parts.cluster.nodes[:2]]
    folder = tmp_path_factory.mktemp(request.param)
    folder.chmod(0o755)
    balancer = kind(folder, nodes)
    try:
        balancer.start()
        yield balancer
    finally:
        balancer.stop()


def leg(url: str, session_id: str, subject: str, **headers: str) -> Any:
    """A connection whose token stands in the query, where each leg has another."""
    query = urlencode({"token": token(sub=subject), "x": uuid4().hex})
    return websockets.connect(
        f"{url}/relay/{session_id}?{query}", additional_headers=headers, compression=None
    )


@contextlib.asynccontextmanager
async def pair(url: str, session_id: str) -> AsyncIterator[tuple[ClientConnection, ClientConnection]]:
    async with leg(url, session_id, "alice") as one, leg(url, session_id, "bob") as two:
        await exchange(one, two)
        yield one, two


async def exchange(one: ClientConnection, two: ClientConnection) -> None:
    """Both are legs of one session, and frames pass."""
    for here, there in ((one, two), (two, one)):
        text = uuid4().hex
        await here.send(text)
        async with asyncio.timeout(START_SECONDS):
            assert await there.recv() == text


async def legs_of(parts: Whole, session_id: str) -> list[dict[str, Any]]:
    """The leg rows of a session, once there are two."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            rows = parts.cluster.rows(session_id)
            if rows and rows[-1]["legs"] and len(rows[-1]["legs"]) == 2:
                return list(rows[-1]["legs"])
            await asyncio.sleep(0.05)


async def test_both_legs_of_a_session_land_on_one_node_and_sessions_spread_over_all(parts, balancer):
    used = set()
    for number in range(16):
        session_id = f"{number}-{uuid4().hex}"
        async with pair(balancer.url, session_id):
            one, two = await legs_of(parts, session_id)
        assert one["node"] == two["node"]
        used.add(one["node"])
    assert len(used) >= 2


async def test_a_client_can_not_choose_the_node(parts, balancer, session_id):
    """Not by a header, nor by having the balancer drop its own, nor by writing the path in another way."""
    for number, headers in enumerate(3 * [{"X-Relay-Path": "one"}, {"Connection": "X-Relay-Path"}]):
        name = f"{number}.{session_id}"
        encoded = f"%{ord(name[0]):x}{name[1:]}"
        async with (
            leg(balancer.url, name, "alice"),
            leg(balancer.url, encoded, "bob", **headers),
        ):
            one, two = await legs_of(parts, name)
        assert one["node"] == two["node"]


async def test_the_address_that_is_recorded_is_the_one_the_balancer_saw(parts, balancer, session_id):
    spoof = {"X-Forwarded-For": INVENTED, "X-Forwarded-Proto": "https"}
    async with (
        leg(balancer.url, session_id, "alice", **spoof),
        leg(balancer.url, session_id, "bob"),
    ):
        addresses = {row["address"] for row in await legs_of(parts, session_id)}
    assert addresses <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(("trusted", "recorded"), [("127.0.0.1", INVENTED), ("10.0.0.0/8", "127.0.0.1")])
async def test_a_node_believes_only_whom_it_trusts(parts, session_id, trusted, recorded):
    with parts.cluster.another(RELAY_TRUSTED_PROXIES=trusted) as node:
        header = {"X-Forwarded-For": INVENTED}
        async with leg(node.url, session_id, "alice", **header), leg(node.url, session_id, "bob", **header):
            assert {row["address"] for row in await legs_of(parts, session_id)} == {recorded}
        async with httpx.AsyncClient() as http:
            await http.get(f"{node.http_url}/health", headers=header)
    clients = {line["client"].rpartition(":")[0] for line in node.lines("http_request")}
    assert clients == {recorded}


async def test_a_draining_node_gets_no_new_session_while_those_it_has_go_on(parts, balancer):
    session_id = f"drain-{uuid4().hex}"
    async with pair(balancer.url, session_id) as (one, two):
        (name, *_) = {row["node"] for row in await legs_of(parts, session_id)}
        node = next(node for node in parts.cluster.nodes if f":{node.process.pid}:" in name)
        node.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(START_SECONDS):
                while await takes_connections(node):  # noqa: ASYNC110 - no event crosses a process
                    await asyncio.sleep(0.02)
            used = await asyncio.gather(*(nodes_of_a_new_session(parts, balancer) for _ in range(8)))
            assert name not in set().union(*used)
            await exchange(one, two)
        finally:
            await asyncio.gather(one.close(), two.close())  # the last that it waits for
            await asyncio.to_thread(node.process.wait, START_SECONDS)
            await asyncio.to_thread(node.serve)
    await gets_sessions(parts, balancer, node)


async def nodes_of_a_new_session(parts: Whole, balancer: Balancer) -> set[str]:
    session_id = f"meanwhile-{uuid4().hex}"
    async with pair(balancer.url, session_id):
        return {row["node"] for row in await legs_of(parts, session_id)}


async def takes_connections(node: Relay) -> bool:
    """Whether it listens."""
    try:
        _, writer = await asyncio.open_connection(node.host, node.port)
    except ConnectionError:  # refused, or reset in the very moment in which it stops
        return False
    writer.close()
    return True


async def gets_sessions(parts: Whole, balancer: Balancer, node: Relay) -> None:
    """Returns when the balancer sends sessions to `node` again."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            session_id = f"again-{uuid4().hex}"
            async with pair(balancer.url, session_id):
                if any(f":{node.process.pid}:" in row["node"] for row in await legs_of(parts, session_id)):
                    return


async def test_an_idle_node_that_is_not_ready_gets_no_session(parts, session_id):
    """By its own word: one whose way to Redis is cut says no at /ready, though it takes connections."""
    with parts.cluster.another("redis://127.0.0.1:1/0") as node:
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{node.http_url}/ready", timeout=20)).status_code == 503
        folder = parts.balancer.folder.with_name(f"caddy-{session_id}")
        caddy = Caddy(folder, [f"{each.host}:{each.port}" for each in (node, parts.cluster.nodes[0])])
        try:
            caddy.start()
            async with asyncio.timeout(
                START_SECONDS
            ):  # a node counts as ready until it's asked for the first time
                while node.port not in not_ready(caddy.output()):  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(0.05)
            for number in range(12):
                async with pair(caddy.url, f"{number}-{session_id}"):
                    pass
        finally:
            caddy.stop()


async def test_a_reload_of_caddy_keeps_the_open_websockets(parts, session_id):
    async with pair(parts.balancer.url, session_id) as (one, two):
        await asyncio.to_thread(parts.balancer.reload)
        await exchange(one, two)
    async with pair(parts.balancer.url, f"{session_id}-new"):
        pass


async def test_caddy_ends_tls_in_front_of_the_nodes(parts, session_id, tmp_path):
    nodes = [f"{node.host}:{node.port}" for node in parts.cluster.nodes]
    caddy = Caddy(tmp_path / "caddy", nodes, tls=True)
    try:
        caddy.start()
        trust = ssl.create_default_context(cafile=str(caddy.authority))
        url = f"{caddy.url}/relay/{session_id}?{urlencode({'token': token()})}"
        async with (
            websockets.connect(url, ssl=trust, compression=None) as one,
            websockets.connect(url, ssl=trust, compression=None) as two,
        ):
            await exchange(one, two)
        # Django knows that the browser came by TLS: the login's cookie check depends on it.
        login = f"{caddy.http_url}/admin/login/"
        async with httpx.AsyncClient(verify=trust) as browser:
            form = {"username": "nobody", "password": "x"}
            form["csrfmiddlewaretoken"] = (await browser.get(login)).cookies["csrftoken"]
            headers = {"Referer": login, "Origin": caddy.http_url}
            answer = await browser.post(login, data=form, headers=headers)
        assert answer.status_code == 200
        assert "correct username and password" in re.sub(r"\s+", " ", answer.text)
    finally:
        caddy.stop()


async def test_no_balancer_logs_a_token(balancer, session_id):
    async with leg_with_tokens_everywhere(balancer, session_id) as jwt:
        pass
    await logs(balancer, session_id)
    assert jwt not in balancer.output()


async def test_no_balancer_logs_a_token_with_an_error(balancer, session_id, tmp_path):
    """As above, where no node takes the connection."""
    tmp_path.chmod(0o755)
    lonely = type(balancer)(tmp_path / "lonely", [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"])
    try:
        await asyncio.to_thread(lonely.start, with_nodes=False)
        with pytest.raises(InvalidHandshake):
            async with leg_with_tokens_everywhere(lonely, session_id, open_timeout=START_SECONDS):
                pass
        await logs(lonely, session_id)
        assert "eyJ" not in lonely.output()  # how each JWT begins
    finally:
        lonely.stop()


@contextlib.asynccontextmanager
async def leg_with_tokens_everywhere(
    balancer: Balancer, session_id: str, **options: Any
) -> AsyncIterator[str]:
    """A leg with its token in all three places where it may stand."""
    jwt = token()
    async with websockets.connect(
        f"{balancer.url}/relay/{session_id}?{urlencode({'token': jwt})}",
        additional_headers={"Authorization": f"Bearer {jwt}"},
        subprotocols=["lem.relay.v1", f"bearer.{jwt}"],
        compression=None,
        **options,
    ):
        yield jwt


async def logs(balancer: Balancer, session_id: str) -> None:
    """Returns when the balancer has logged a request for this session."""
    async with asyncio.timeout(START_SECONDS):
        while session_id not in balancer.output():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)


async def test_sessions_go_on_coming_while_the_database_is_away(parts, balancer, session_id):
    """No node is ready then, yet each admits whoever comes."""
    logged = len(balancer.output())
    parts.postgres.stop()
    try:
        async with asyncio.timeout(START_SECONDS):
            while not knows_that_none_is_ready(balancer, parts, balancer.output()[logged:]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with pair(balancer.url, session_id):
            pass
    finally:
        parts.postgres.start()
    assert len(await legs_of(parts, session_id)) == 2
    for node in parts.cluster.nodes[:2]:
        await gets_sessions(parts, balancer, node)


def knows_that_none_is_ready(balancer: Balancer, parts: Whole, log: str) -> bool:
    """By what it logs; nginx never knows."""
    if isinstance(balancer, Caddy):
        return not_ready(log) >= {node.port for node in parts.cluster.nodes}
    return isinstance(balancer, Nginx) or "Running on backup" in log


def not_ready(log: str) -> set[int]:
    """The ports of the nodes that told Caddy that they aren't ready."""
    return set(map(int, re.findall(r'"status code out of tolerances".*:(\d+)"', log)))


def test_no_balancer_cuts_a_session_before_the_relay_does():
    longest = RelaySettings().max_session_seconds
    caddy = subprocess.run(
        [Caddy(Path("/tmp"), []).command[0], "adapt", "--config", FILES / "Caddyfile"],  # noqa: S108 - not written to
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    found = dict(numbers(json.loads(caddy.stdout)))
    assert found["stream_close_delay"] / 1e9 >= longest
    assert not {"stream_timeout", "read_timeout", "write_timeout", "idle_timeout"} & found.keys()
    haproxy = (FILES / "haproxy.cfg").read_text(encoding="utf-8")
    nginx = (FILES / "nginx.conf").read_text(encoding="utf-8")
    for text, pattern in (
        (haproxy, r"timeout tunnel (\d+)h"),
        (haproxy, r"hard-stop-after (\d+)h"),
        (nginx, r"proxy_read_timeout (\d+)h"),
        (nginx, r"proxy_send_timeout (\d+)h"),
    ):
        assert [int(hours) * 3600 >= longest for hours in re.findall(pattern, text)] == [True], pattern


def numbers(config: Any) -> Iterator[tuple[str, Any]]:
    """All numbers of a JSON document with their names."""
    if isinstance(config, dict):
        for name, value in config.items():
            if isinstance(value, int):
                yield name, value
            yield from numbers(value)
    elif isinstance(config, list):
        for value in config:
            yield from numbers(value)


async def test_make_cluster_prints_where_to_connect_and_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        async with asyncio.timeout(2 * START_SECONDS):
            while "Ctrl-C" not in out.read_text(encoding="utf-8"):
                assert process.poll() is None, out.read_text(encoding="utf-8")
                await asyncio.sleep(0.1)
        said = dict(
            re.findall(r"^(connect both legs to|with this token|logs) +(\S+)$", out.read_text(), re.MULTILINE)
        )
        url = f"{said['connect both legs to']}?token={said['with this token']}"
        async with (
            websockets.connect(url, compression=None) as one,
            websockets.connect(url, compression=None) as two,
        ):
            await exchange(one, two)
    finally:
        process.send_signal(signal.SIGINT)
        status = await asyncio.to_thread(process.wait, 2 * START_SECONDS)
    assert status == 0, out.read_text(encoding="utf-8")
    assert not await asyncio.to_thread(Path(said["logs"]).exists)


# A rolling restart

PAIRS = 12


class Peer:
    """One participant that comes back whenever it's told to, and counts what it gets."""

    def __init__(self, url: str, session_id: str, role: str) -> None:
        self._relay = type("At", (), {"url": url})
        self._session_id = session_id
        self._token = token(sub=f"{role} of {session_id}", role=role)
        self.received_bytes = 0
        self.rounds: set[int] = set()
        self.codes: list[int] = []
        self.failures: list[str] = []
        self.round = 0
        self.leaving = False

    async def run(self) -> None:
        while not self.leaving:
            try:
                async with connect(self._relay, self._session_id, self._token) as socket:
                    sending = asyncio.create_task(self._send(socket))
                    try:
                        async for message in socket:
                            self._take(message)
                    finally:
                        sending.cancel()
                    self.codes.append(socket.close_code)
            except ConnectionClosed as closed:
                self.codes.append(closed.rcvd.code if closed.rcvd else 1006)
            except (InvalidHandshake, OSError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)

    def _take(self, message: bytes) -> None:
        self.received_bytes += len(message)
        self.rounds.add(message[0])

    async def _send(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while not self.leaving:
                await socket.send(bytes([self.round]) * 1500)
                await asyncio.sleep(0.02)
            await socket.close()


@pytest.mark.timeout(180)
async def test_a_rolling_restart_under_load_loses_nobody_and_no_byte_of_the_usage(parts):
    names = [f"rolling-{number}-{uuid4().hex}" for number in range(PAIRS)]
    peers = [Peer(parts.balancer.url, name, role) for name in names for role in ("client", "server")]
    running = [asyncio.create_task(peer.run()) for peer in peers]
    await all_in_round(peers, 0)
    for number, node in enumerate(parts.cluster.nodes, 1):
        assert await asyncio.to_thread(node.stop) == 0
        await asyncio.to_thread(node.serve)
        for peer in peers:
            peer.round = number
        await all_in_round(peers, number)
        await gets_sessions(parts, parts.balancer, node)
    for peer in peers:
        peer.leaving = True
    async with asyncio.timeout(START_SECONDS):
        await asyncio.gather(*running)
    codes = {code for peer in peers for code in peer.codes}
    # Told to come back, or that the peer was quicker at it; never cut off.
    assert codes <= {1012, 1000, 4411, 4409}
    assert 1012 in codes
    assert [failure for peer in peers for failure in peer.failures] == []
    got = sum(peer.received_bytes for peer in peers)
    async with asyncio.timeout(START_SECONDS):
        while (booked := booked_bytes(parts, names)) is None:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.1)
    assert booked == got


async def all_in_round(peers: list[Peer], number: int) -> None:
    """Returns when every peer has had a message that was sent in this round."""
    async with asyncio.timeout(START_SECONDS):
        while not all(number in peer.rounds for peer in peers):  # noqa: ASYNC110 - tasks of their own
            await asyncio.sleep(0.05)


def booked_bytes(parts: Whole, names: list[str]) -> int | None:
    """The sum over all rows of these sessions; None while one is not closed."""
    query = "SELECT count(*) FILTER (WHERE timestamp IS NULL), sum(total_bytes) FROM relay_relaysession"
    with psycopg.connect(parts.cluster.database_url) as connection:
        row = connection.execute(f"{query} WHERE session_id = ANY(%s)", (names,)).fetchone()
    assert row is not None
    return None if row[0] else int(row[1])
