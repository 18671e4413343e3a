"""A project of one's own, on each server: after SIGTERM no record is missing, and no token was written.

One run of each server serves all of these tests: legs come in by each way that a token may take, good and bad
requests are made, then it's told to stop with sessions live.
"""

import asyncio
import contextlib
import json
import signal
import socket
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import InvalidHandshake

from tests.behaviour.clients import closed, connect
from tests.other_servers.project import COMMANDS, Project, migrated
from tests.tokens import token

SESSIONS = 4

ABORTS = 8
"""Runs of granian after which one in which it doesn't abort itself counts as not to be had."""

WITHOUT_LIFESPAN = ("uvicorn", "uvicorn, two workers", "hypercorn", "granian")

NO_LIFESPAN = ": no lifespan"
"""Ends the name of a run without one."""


@dataclass
class Run:
    """What is left of a server that was told SIGTERM."""

    server: str
    status: int
    closes: set[tuple[int, str]]
    rows: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    output: str
    written: dict[str, bytes]
    secrets: list[str]
    passed_on: tuple[int, str] | None


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return migrated(tmp_path_factory.mktemp("migrated"))


@pytest.fixture(scope="module", params=[*COMMANDS, *(name + NO_LIFESPAN for name in WITHOUT_LIFESPAN)])
def run(request, database, tmp_path_factory):
    """A run of each server, of some once more without a lifespan."""
    server = request.param.removesuffix(NO_LIFESPAN)
    for _ in range(ABORTS):
        project = Project(
            server, tmp_path_factory.mktemp("project"), database, lifespan=server == request.param
        )
        project.clean = False
        run = asyncio.run(_run(request.param, project))
        # granian 2.8 aborts itself in one of five stops with WebSockets open, whatever the application is:
        # "Cannot drop pointer into Python heap without the thread being attached".
        if "Cannot drop pointer into Python heap" not in project.stderr:
            break
    return run


async def _run(name: str, project: Project) -> Run:
    server = name.removesuffix(NO_LIFESPAN)
    with project:
        secrets = await _knock(project)
        alone = "workers" in name  # without Redis two legs find each other in one process only
        passed_on = None if alone or server == "plain daphne" else await _peers_close(project)
        sockets = []
        for number in range(SESSIONS):
            tokens = [token(sub=sub, role=role) for sub, role in (("alice", "client"), ("bob", "server"))]
            secrets += tokens
            client = await asking(project, f"relay/live{number}", tokens[0])
            sockets.append(client)
            if alone:
                continue
            other = await connect(project, f"live{number}", tokens[1])
            sockets.append(other)
            await client.send("before")
            assert await other.recv() == "before"
        stopping = asyncio.create_task(asyncio.to_thread(project.stop, signal.SIGTERM))
        closes = {await closed(socket) for socket in sockets}
        status = await stopping
    live = [row for row in project.sessions() if row["session_id"].startswith("live")]
    lines = [json.loads(line) for line in project.stdout.splitlines() if '"session_closed"' in line]
    lines = [line for line in lines if line["session_id"].startswith("live")]
    output = project.stdout + project.stderr
    return Run(name, status, closes, live, lines, output, project.written(), secrets, passed_on)


def asking(project: Project, path: str, jwt: str) -> websockets_connect:
    """A connection with its token in the query alone."""
    return connect(project, "", uri=f"{project.url}/{path}?token={jwt}", additional_headers={})


async def _knock(project: Project) -> list[str]:
    """Come in, be refused, and be not understood, with a secret in each place; gives the secrets."""
    good = [token(sub=name) for name in ("query", "header", "subprotocol")]
    async with asking(project, "relay/query", good[0]):
        pass
    async with connect(project, "header", good[1]):
        pass
    offered = ["lem.relay.v1", f"bearer.{good[2]}"]
    async with connect(project, "subprotocol", additional_headers={}, subprotocols=offered):
        pass
    bad = [f"eyJhbGciOiJIUzI1NiJ9.refused{number}.marked-secret" for number in range(3)]
    bad += [f"marked-secret-{number}" for number in range(6)]
    paths = ["relay/x", "relay/not%20an%20id", "no/such/path"]
    for path, secret in zip(paths, bad[:3], strict=True):
        with contextlib.suppress(InvalidHandshake):
            async with asking(project, path, secret) as socket:
                assert (await closed(socket))[0] in (4401, 4403)
    async with connect(project, "x", bad[3]) as socket:
        assert (await closed(socket))[0] == 4401
    async with httpx.AsyncClient(base_url=f"http://{project.host}:{project.port}") as http:
        for path in ("relay/x", "health", "no/such/path"):
            await http.get(f"/{path}?token={bad[4]}", headers={"Authorization": f"Bearer {bad[5]}"})
    for request in (
        f"GET /relay/x?token={bad[6]} HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        f"GET /relay/x?token={bad[7]} HTTP/1.1\r\nno header\r\nAuthorization: Bearer {bad[7]}\r\n\r\n",
        f"/relay/x?token={bad[8]} is no request\r\n\r\n",
    ):
        await asyncio.to_thread(_send, project, request.encode())
    return good + bad


def _send(project: Project, request: bytes) -> None:
    """Send what no client library would, and wait for whatever comes of it."""
    with contextlib.suppress(OSError), socket.create_connection((project.host, project.port), 10) as raw:
        raw.sendall(request)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass


async def _peers_close(project: Project) -> tuple[int, str]:
    """What a leg is told when its peer closes with 3001 and a reason."""
    async with (
        connect(project, "closing", token(role="client")) as one,
        connect(project, "closing", token(role="server")) as other,
    ):
        await one.close(3001, "bye")
        return await closed(other)


PASSED_ON = {"hypercorn": (4410, "peer_lost: the peer's connection dropped"), "granian": (3001, "")}
"""What is left of a peer's close, 3001 and "bye", on servers that don't pass on all of it."""


def test_no_record_is_missing_after_sigterm(run):
    size = 0 if "workers" in run.server else len("before")
    assert sorted(row["session_id"] for row in run.rows) == [f"live{number}" for number in range(SESSIONS)]
    assert {row["total_bytes"] for row in run.rows} == {size}
    reasons = {row["reason"] for row in run.rows}
    # granian tells its applications that their peers are gone, not why.
    assert reasons <= ({"peer_lost", "restarting"} if "granian" in run.server else {"restarting"})
    assert all(row["timestamp"] for row in run.rows)


def test_each_session_that_sigterm_ended_has_its_line(run):
    told = ("session_uuid", "reason", "total_bytes")
    rows = {row["session_id"]: [str(row[name]).replace("-", "") for name in told] for row in run.rows}
    lines = {line["session_id"]: [str(line[name]).replace("-", "") for name in told] for line in run.lines}
    assert lines == rows
    assert len(run.lines) == SESSIONS


def test_sigterm_is_told_to_clients_as_the_documentation_says(run):
    codes = {code for code, _ in run.closes}
    if "granian" in run.server:
        assert codes <= {1006, 4410}
    else:
        assert codes == {1006 if run.server == "plain daphne" else 1012}
    # uvicorn raises the signal once more when all is done, but not in the parent of workers.
    alone = run.server.startswith("uvicorn") and "workers" not in run.server
    assert run.status == (-signal.SIGTERM if alone else 0)


def test_a_peers_close_is_passed_on_as_the_documentation_says(run):
    server = run.server.removesuffix(NO_LIFESPAN)
    whole = None if server in ("uvicorn, two workers", "plain daphne") else (3001, "bye")
    assert run.passed_on == PASSED_ON.get(server, whole)


def test_no_token_is_in_anything_that_was_written(run):
    assert "/relay/" in run.output  # it does tell of requests
    pieces = {piece for secret in run.secrets for piece in [secret, *secret.split(".")[1:]]}
    found = [
        (path, piece)
        for path, content in run.written.items()
        for piece in pieces
        if piece.encode() in content
    ]
    assert found == []
