"""kill -9 of real relays under load: what was recorded by the last checkpoint is billed, and nothing else."""

import asyncio
import random
import time

import psycopg
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.behaviour.clients import pair
from tests.relays import Relay
from tests.usage.books import CHECKPOINT_SECONDS, Books

KILLS = 20

PAIRS = 10

LATE_SECONDS = 1.0
"""What a busy machine may add to a checkpoint: its slice, the batch, the transaction."""


class Chatter:
    """A pair that sends one frame after the other, each when the last has come; it knows what came when."""

    def __init__(self, relay: Relay, session_id: str, size: int) -> None:
        self.session_id = session_id
        self.size = size
        self.arrivals: list[float] = []
        self._relay = relay

    async def run(self) -> None:
        try:
            async with pair(self._relay, self.session_id) as (client, server):
                try:
                    while True:
                        await client.send(bytes(self.size))
                        await self._receive(server)
                except ConnectionClosed:
                    while True:  # what the kernel still has of it
                        await self._receive(server)
        except (WebSocketException, OSError):
            pass

    async def _receive(self, server: ClientConnection) -> None:
        await server.recv()
        self.arrivals.append(time.monotonic())

    def arrived_before(self, moment: float) -> int:
        return sum(arrival < moment for arrival in self.arrivals)


class Visitors:
    """Pairs that come, say something and leave, one after the other."""

    def __init__(self, relay: Relay, name: str) -> None:
        self.name = name
        self.left: dict[str, tuple[int, float]] = {}
        """By session: bytes that arrived, and when all was over."""
        self._relay = relay

    async def run(self) -> None:
        for number in range(10_000):
            session_id = f"{self.name}-{number}"
            try:
                async with pair(self._relay, session_id) as (client, server):
                    await client.send(bytes(number))
                    nbytes = len(await server.recv())
            except (WebSocketException, OSError):
                return
            self.left[session_id] = nbytes, time.monotonic()


async def test_after_each_of_20_kills_under_load_the_records_lack_a_checkpoint_at_most_and_claim_nothing(
    books: Books,
) -> None:
    chosen = random.Random(20)
    killed_at: list[float] = []
    chatters: list[list[Chatter]] = []
    visitors: list[Visitors] = []
    for kill in range(KILLS):
        relay = books.relay()
        relay.serve()  # and closes what the one before left open
        chatters.append([Chatter(relay, f"load-{kill}-{number}", 1000 + number) for number in range(PAIRS)])
        visitors.append(Visitors(relay, f"short-{kill}"))
        load = [asyncio.ensure_future(one.run()) for one in (*chatters[-1], visitors[-1])]
        # Some before the first checkpoint, most after it.
        await asyncio.sleep(chosen.uniform(0.1, 4 * CHECKPOINT_SECONDS))
        relay.process.kill()
        killed_at.append(time.monotonic())
        relay.process.wait()
        await asyncio.gather(*load)
    with books.running():
        await books.until(lambda: not _open_legs(books), "no leg is open")
        await books.until(lambda: all(row["timestamp"] for row in books.rows()), "no session is open")
    rows = {row["session_id"]: row for row in books.rows()}
    assert len(rows) == len(books.rows())
    checkpointed = 0
    for killed, pairs in zip(killed_at, chatters, strict=True):
        for chatter in pairs:
            known = chatter.arrived_before(killed - CHECKPOINT_SECONDS - LATE_SECONDS)
            checkpointed += known > 0
            if chatter.session_id not in rows:
                assert known == 0
                continue
            row = rows[chatter.session_id]
            assert row["reason"] == "node_lost"
            assert known <= row["frames_client_to_server"] <= len(chatter.arrivals)
            assert row["bytes_client_to_server"] == row["frames_client_to_server"] * chatter.size
            assert row["bytes_server_to_client"] == 0
    assert checkpointed > KILLS, "hardly any was killed after a checkpoint"
    without_line = books.check(list(rows.values()))
    for killed, short in zip(killed_at, visitors, strict=True):
        for session_id, (nbytes, left_at) in short.left.items():
            if left_at < killed - LATE_SECONDS:
                row = rows[session_id]
                assert (row["reason"], row["bytes_client_to_server"]) == ("peer_left", nbytes)
                assert str(row["session_uuid"]) not in without_line
    # Killed between a row's transaction and its line, there is none: rare, and never one too many.
    assert len(without_line) <= KILLS


def _open_legs(books: Books) -> int:
    with psycopg.connect(books.url) as connection:
        counted = connection.execute("SELECT count(*) FROM relay_relayleg WHERE left_at IS NULL").fetchone()
    assert counted is not None
    return int(counted[0])
