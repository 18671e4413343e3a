"""Rounds of ends over each path that frames can take, and what went wrong in them."""

import asyncio
import contextlib
import itertools
import random
import sqlite3
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from channels_redis.pubsub import RedisPubSubChannelLayer

from relay import sessions
from tests.certificates import self_signed
from tests.databases import Postgres, Valkey
from tests.ends.clients import Client, Got
from tests.ends.kinds import Kind, Scene, be_busy
from tests.ends.streams import stream
from tests.nodes.cluster import Cluster, clustered
from tests.relays import COMMANDS, Relay, running
from tests.tokens import token

PATHS = ("spliced", "ordinary", "tls", "two nodes")

SHAPES = [(1, 1), (65_536, 1), (128, 1), (1_000_000, 1), (65_536, 3), (1_000_000, 7)]
"""Bytes of a message, and in how many frames it is sent."""

TOGETHER = 3
"""Sessions that end at the same time."""

TLS = "daphne tls"


@dataclass
class Tally:
    """What became of the rounds of one kind."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)


class Path_:
    """A relay on which one path is taken. `restart` is for kinds that end it."""

    def __init__(self, name: str, relay: Relay | Cluster, redis_url: str) -> None:
        self.name = name
        self.relay = relay
        self._redis_url = redis_url

    @property
    def keeps_frames(self) -> bool:
        """Whether a message arrives in the frames in which it was sent."""
        return self.name in ("spliced", "tls")

    def event(self, session_id: str, reason: str) -> None:
        """What an operator's process does: one event to the session's group."""

        async def send() -> None:
            layer = RedisPubSubChannelLayer(hosts=[self._redis_url])
            group = sessions.group_name(self._live_uuid(session_id))
            await layer.group_send(group, {"type": sessions.CLOSE_EVENT, "reason": reason})
            await layer.flush()

        asyncio.run(send())

    def _live_uuid(self, session_id: str) -> UUID:
        deadline = time.monotonic() + 20
        query = "SELECT session_uuid FROM relay_relaysession WHERE timestamp IS NULL AND session_id = "
        while time.monotonic() < deadline:
            if isinstance(self.relay, Cluster):
                with psycopg.connect(self.relay.database_url) as connection:
                    row = connection.execute(query + "%s", (session_id,)).fetchone()
            else:
                database = next(self.relay.folder.glob("*.sqlite3"))
                with contextlib.closing(sqlite3.connect(database, timeout=20)) as embedded:
                    row = embedded.execute(query + "?", (session_id,)).fetchone()
            if row:
                return row[0] if isinstance(row[0], UUID) else UUID(row[0])
            time.sleep(0.02)
        raise AssertionError(f"no record of {session_id}")

    def come_back(self, session_id: str) -> None:
        """The first participant connects again, and leaves when it has been seated."""
        empty = stream(1, 1, 0)
        again = Client(self.relay, session_id, token(sub="alice", role="client"), empty, empty.as_frames)
        again.leave()

    def ended(self, session_id: str) -> dict[str, Any]:
        """The line of the first session of this id that was a pair."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in self.relay.lines("session_closed"):
                if line["session_id"] == session_id and line["paired_seconds"]:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line for {session_id}")


@contextlib.contextmanager
def backends() -> Iterator[tuple[str, Postgres]]:
    """A Valkey and a PostgreSQL."""
    valkey, postgres = Valkey(), Postgres()
    valkey.start()
    postgres.start()
    try:
        yield valkey.url, postgres
    finally:
        postgres.stop()
        valkey.stop()


@contextlib.contextmanager
def path(
    name: str, folder: Path, redis_url: str, postgres: Postgres, environ: tuple[tuple[str, str], ...]
) -> Iterator[Path_]:
    """A relay for this path; its logs have to be clean at the end."""
    environ = {"REDIS_URL": redis_url, **dict(environ)}
    if name == "two nodes":
        url = postgres.create(f"ends-{uuid4().hex[:8]}")
        with clustered(folder, [redis_url] * 2, url, environ) as cluster:
            yield Path_(name, cluster, redis_url)
        return
    server = {"spliced": "daphne spliced", "ordinary": "daphne", "tls": TLS}[name]
    if server == TLS:
        folder.mkdir(parents=True, exist_ok=True)
        key, certificate = self_signed(folder)
        endpoint = f"ssl:{{port}}:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
        COMMANDS[TLS] = ["daphne", "-e", endpoint, "lemcloud.asgi:application"]
        environ["RELAY_SPLICE"] = "True"
    try:
        with running(server, folder, environ) as relay:
            if server == TLS:
                relay.ssl = ssl.create_default_context(cafile=str(certificate))  # type: ignore[attr-defined]
            yield Path_(name, relay, redis_url)
    finally:
        COMMANDS.pop(TLS, None)


def play(kind: Kind, where: Path_, rounds: int, seed: int = 0) -> Tally:
    """So many ends of one kind."""
    tally = Tally()
    for shape in SHAPES:  # made before the first is needed: a session's time passes meanwhile
        stream(*shape, 1), stream(*shape, 2)
    shapes = itertools.cycle(shape for shape in SHAPES if shape[0] > 60_000 or not kind.large)
    lots = -(-rounds // TOGETHER)
    for lot in range(lots):
        count = min(TOGETHER, rounds - lot * TOGETHER)
        draw = random.Random(f"{kind.name} {where.name} {seed} {lot}")
        scenes = [_meet(where, next(shapes)) for _ in range(count)]
        # When all have met: a busy relay lets the next ones wait for their places, while their time passes.
        for scene in scenes:
            for client, pushes in zip((scene.first, scene.second), kind.pushes, strict=True):
                if pushes:
                    client.pushing.set()
                client.start()
        be_busy(kind, draw)
        with ThreadPoolExecutor(TOGETHER) as threads:
            list(threads.map(kind.end, scenes[:1] if kind.name == "drain" else scenes))
        for scene in scenes:
            wrong = _judge(kind, where, scene, scene.first.finish(), scene.second.finish())
            if wrong:
                tally.wrong.append(wrong)
            else:
                tally.right += 1
    return tally


def _meet(where: Path_, shape: tuple[int, int]) -> Scene:
    """Two clients whose greetings have crossed."""
    session_id = f"end-{uuid4().hex[:12]}"
    up, down = stream(*shape, 1), stream(*shape, 2)
    form = "as_frames" if where.keeps_frames else "as_messages"
    relay = where.relay
    first = Client(relay, session_id, token(sub="alice", role="client"), up, getattr(down, form))
    second = Client(relay, session_id, token(sub="bob", role="server"), down, getattr(up, form))
    for client in (first, second):
        client.meet()
    first.peer, second.peer = second, first
    target = relay.nodes[0] if isinstance(relay, Cluster) else relay
    return Scene(first, second, target, session_id, where.event, where.come_back)


def _judge(kind: Kind, where: Path_, scene: Scene, first: Got, second: Got) -> str:
    """What is wrong with an end; empty if nothing is."""
    for name, got, code in (("first", first, kind.codes[0]), ("second", second, kind.codes[1])):
        if code is None:
            continue
        if got.wrong:
            return f"the {name} leg: {got.wrong}"
        if got.half and not (kind.may_be_half and name == "second"):
            return f"the {name} leg got half a frame"
        if not got.half and got.code != code:
            return f"the {name} leg was told {got.code}, not {code}"
    line = where.ended(scene.session_id)
    for got, side, code in (
        (second, "client_to_server", kind.codes[1]),
        (first, "server_to_client", kind.codes[0]),
    ):
        recorded = line[f"frames_{side}"], line[f"bytes_{side}"]
        if code is not None and recorded != (got.frames, got.nbytes):
            return f"{side}: {recorded} recorded, {(got.frames, got.nbytes)} delivered"
    return ""
