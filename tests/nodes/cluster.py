"""Several relay processes on one Valkey and one PostgreSQL: one relay, told apart only where a test wants."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from websockets.asyncio.client import ClientConnection

from relay.ledger.records import LINE_FIELDS, plain
from tests.behaviour.clients import connect
from tests.relays import START_SECONDS, Relay
from tests.tables import rows
from tests.tokens import token

SERVER = "daphne spliced"


class Cluster:
    """Nodes that are one relay.

    It has what a single `Relay` has for tests: each `url` (and `port`) that is asked for is the next node's,
    so that the two legs of a pair always land on different nodes.
    """

    host = Relay.host

    def __init__(
        self,
        folder: Path,
        redis_urls: Sequence[str],
        database_url: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.database_url = database_url
        self._environ = {**(environ or {}), "DATABASE_URL": database_url}
        self.nodes = [self._make(url) for url in redis_urls]
        self._all = list(self.nodes)
        self._turn = itertools.cycle(self.nodes)
        self.max_message_bytes = self.nodes[0].max_message_bytes

    def start(self) -> None:
        """Start all nodes at once, once the first has made the tables."""
        first, *others = self.nodes
        first.start()
        with ThreadPoolExecutor() as threads:
            list(threads.map(Relay.serve, others))

    def stop(self) -> None:
        """Stop all nodes at once."""
        started = [node for node in self._all if hasattr(node, "process")]
        with ThreadPoolExecutor() as threads:
            list(threads.map(Relay.stop, started))

    @contextlib.contextmanager
    def another(self, redis_url: str | None = None, **environ: str) -> Iterator[Relay]:
        """One more node for the length of a block, which may end it any way it likes."""
        node = self._make(redis_url or self.nodes[0].environ["REDIS_URL"], environ)
        node.serve()
        self._all.append(node)
        try:
            yield node
        finally:
            node.stop()
        self._settled(node)

    def _settled(self, node: Relay) -> None:
        """Wait until what a killed node left open is closed by others.

        The next node may be killed, too, and would be the one that does it, at its start: between a row's end
        and its line, perhaps, which is then missing.
        """
        deadline = time.monotonic() + START_SECONDS
        query = "SELECT count(*) FROM relay_relaysession WHERE timestamp IS NULL AND node LIKE %s"
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            while connection.execute(query, (f"%:{node.process.pid}:%",)).fetchone() != (0,):
                assert time.monotonic() < deadline, "what the node left is still open"
                time.sleep(0.05)

    def _make(self, redis_url: str, environ: Mapping[str, str] | None = None) -> Relay:
        number = len(list(self.folder.iterdir())) if self.folder.exists() else 0
        folder = self.folder / f"node-{number}"
        folder.mkdir(parents=True)
        return Relay(SERVER, folder, {**self._environ, "REDIS_URL": redis_url, **(environ or {})})

    # As a single relay

    @property
    def url(self) -> str:
        return next(self._turn).url

    @property
    def port(self) -> int:
        return next(self._turn).port

    @property
    def http_url(self) -> str:
        return self.nodes[0].http_url

    def manage(self, *arguments: str, check: bool = True) -> Any:
        """Run a management command beside the first node."""
        return self.nodes[0].manage(*arguments, check=check)

    def output(self) -> str:
        """All that any node has written."""
        return "\n".join(f"--- {node.url}\n{node.output()}" for node in self._all)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The JSON lines of this event on any node's stdout."""
        return [line for node in self._all for line in node.lines(event)]

    session_closed = Relay.session_closed

    # The books

    def rows(self, session_id: str) -> list[dict[str, Any]]:
        """The rows of a session id, with their legs' under `legs`.

        What a node adds to a session that others have closed comes after that.
        """
        return rows({"DATABASE_URL": self.database_url}, session_id)

    async def opened(self, session_id: str, sessions: int = 1) -> None:
        """Returns when so many sessions have been opened under this id: their first legs are seated."""
        async with asyncio.timeout(START_SECONDS):
            while len(self.rows(session_id)) < sessions:  # noqa: ASYNC110 - no event crosses a process
                await asyncio.sleep(0.02)

    async def paired(self, session_id: str) -> None:
        """Returns when both nodes of the live session of this id know of both of its legs.

        Who leaves before that, having seen nothing of its peer, leaves a session that never was a pair.
        """
        async with asyncio.timeout(START_SECONDS):
            while not any(row["paired_at"] and not row["timestamp"] for row in self.rows(session_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def booked(self, session_id: str, *told: int | None, settled: bool = True) -> dict[str, Any]:
        """The line of the first session of this id, once its row is closed too; they have to agree.

        So have the rows of its legs, but where no node is left to write them or both didn't settle it. `told`
        are the close codes of the client and the server; None for one that was told nothing.
        """
        async with asyncio.timeout(START_SECONDS):
            # A leg that was told something is written by whoever told it, sooner or later than the session.
            with_legs = settled or (bool(told) and None not in told)
            while not is_closed(rows := self.rows(session_id), with_legs):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        line = await self.session_closed(session_id, {str(row["session_uuid"]) for row in rows[1:]})
        check_row(rows[0], line)
        legs = {leg["role"]: leg for leg in rows[0]["legs"]}
        assert sorted(legs) == sorted(leg["role"] for leg in rows[0]["legs"]) == ["client", "server"]
        if settled:
            check_legs(rows[0])
        if told:
            assert (legs["client"]["close_code"], legs["server"]["close_code"]) == told
            if line["reason"] != "peer_left":
                assert {
                    leg["close_reason"].partition(":")[0] for leg in legs.values() if leg["close_code"]
                } == {line["reason"]}
        return line

    async def received(self, session_id: str, role: str, frames: int, nbytes: int) -> dict[str, Any]:
        """The row of one leg of the first session of this id, which has to have received just that."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                (leg,) = (leg for leg in self.rows(session_id)[0]["legs"] if leg["role"] == role)
                if leg["left_at"]:
                    assert (leg["frames_received"], leg["bytes_received"]) == (frames, nbytes)
                    return leg
                await asyncio.sleep(0.05)

    def check_books(self) -> None:
        """Every session that ended has one line and one row in the cluster, and they agree."""
        lines: dict[str, dict[str, Any]] = {}
        for line in self.lines("session_closed"):
            assert line["session_uuid"] not in lines, f"two lines: {line} and {lines[line['session_uuid']]}"
            lines[line["session_uuid"]] = line
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            rows = connection.execute("SELECT * FROM relay_relaysession WHERE timestamp IS NOT NULL")
            by_uuid = {str(row["session_uuid"]): row for row in rows}
        assert by_uuid.keys() == lines.keys(), f"without row or line: {by_uuid.keys() ^ lines.keys()}"
        for uuid, line in lines.items():
            check_row(by_uuid[uuid], line)

    def check_logs(self) -> None:
        """No traceback and no error of any node."""
        for node in self._all:
            node.check_logs()


@contextlib.asynccontextmanager
async def pair_across(
    cluster: Cluster, first: Relay, second: Relay, session_id: str
) -> AsyncIterator[tuple[ClientConnection, ClientConnection]]:
    """Both legs of a session: the client on `first`, which opens it, and the server on `second`."""
    async with connect(first, session_id, token(sub="alice", role="client")) as client:
        # Being connected is not yet being seated: on two nodes the second could be faster.
        await cluster.opened(session_id)
        async with connect(second, session_id, token(sub="bob", role="server")) as server:
            yield client, server


def is_closed(rows: list[dict[str, Any]], with_legs: bool) -> bool:
    """Whether the first of these rows has ended, and its legs have."""
    if not rows or rows[0]["timestamp"] is None:
        return False
    return not with_legs or all(leg["left_at"] for leg in rows[0]["legs"])


def check_legs(row: dict[str, Any]) -> None:
    """What a session relayed is what its legs received, and both have left."""
    for leg in row["legs"]:
        way = "server_to_client" if leg["role"] == "client" else "client_to_server"
        assert (leg["frames_received"], leg["bytes_received"]) == (row[f"frames_{way}"], row[f"bytes_{way}"])
        assert leg["left_at"]


def check_row(row: dict[str, Any], line: dict[str, Any]) -> None:
    """A session's row and its line say the same."""
    assert {name: plain(row[name]) for name in LINE_FIELDS} == {name: line[name] for name in LINE_FIELDS}


@contextlib.contextmanager
def clustered(
    folder: Path, redis_urls: Sequence[str], database_url: str, environ: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A cluster for the length of a block; its books and its logs have to be in order at the end."""
    cluster = Cluster(folder, redis_urls, database_url, environ)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    cluster.check_books()
    cluster.check_logs()
