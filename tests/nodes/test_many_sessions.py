"""Many sessions at once whose legs land on any node: each keeps to itself, and none has a third leg."""

import asyncio
import contextlib
import random

import pytest

from tests.behaviour.raw import RawClient
from tests.nodes.probes import all_ready
from tests.tokens import token

SESSIONS = 500
RACERS = 4
"""Clients that want the same session."""

FRAMES = 5

AT_ONCE = 100
"""Connections that are made at once: a listening socket's queue has an end, and that isn't what is tested."""

DEADLINE = 90.0

TEXT, CLOSE, PING = 0x1, 0x8, 0x9


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    # Two thousand join in the same moment on a few cores: nobody is to be refused for that.
    return {"RELAY_ADMIT_SECONDS": "60"}


@contextlib.asynccontextmanager
async def connected(legs: list[RawClient]):
    """TCP connections of all of them; who joins when is up to the test (`join`)."""
    few = asyncio.Semaphore(AT_ONCE)

    async def open_(leg: RawClient) -> None:
        async with few:
            leg.reader, leg.writer = await asyncio.open_connection(leg.node.host, leg.node.port)

    try:
        await asyncio.gather(*(open_(leg) for leg in legs))
        yield
    finally:
        for leg in legs:
            leg.writer.transport.abort()


class Racer(RawClient):
    """A leg whose connecting and joining are two steps."""

    def __init__(self, node, session_id: str) -> None:
        super().__init__(node, session_id, JWT)
        self.node = node
        self.session_id = session_id

    async def join(self) -> None:
        self.writer.write(self._request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head

    async def next_data(self) -> tuple[int, bytes]:
        """The next frame that is no ping, as opcode and payload."""
        while (frame := await self.next_frame(DEADLINE))[0] == PING:
            pass
        return frame


JWT = token()
"""One for all, made once: roles are given by who comes first."""


async def test_sessions_whose_legs_are_spread_over_the_nodes_keep_to_themselves(cluster, session_id):
    draw = random.Random(5)
    pairs = [
        [Racer(draw.choice(cluster.nodes), f"{session_id}.{number}") for _ in range(2)]
        for number in range(SESSIONS)
    ]

    async def exchange(number: int, me: Racer, side: int) -> None:
        await me.join()
        for round_ in range(FRAMES):
            await me.frame(TEXT, b"%d %d %d" % (number, side, round_))
            assert await me.next_data() == (TEXT, b"%d %d %d" % (number, 1 - side, round_))

    await all_ready(cluster)
    async with connected([leg for legs in pairs for leg in legs]), asyncio.timeout(DEADLINE):
        await asyncio.gather(
            *(
                exchange(number, leg, side)
                for number, legs in enumerate(pairs)
                for side, leg in enumerate(legs)
            )
        )
    nodes = {tuple(sorted(leg.node.port for leg in legs)) for legs in pairs}
    assert len(nodes) == 6, "every combination of nodes has been met"
    lines = await ended(cluster, session_id)
    for line in lines:
        number = line["session_id"].rpartition(".")[2]
        for way in ("client_to_server", "server_to_client"):
            assert line[f"frames_{way}"] == FRAMES
            assert line[f"bytes_{way}"] == FRAMES * len(f"{number} 0 0")


async def test_of_all_who_race_for_a_session_exactly_two_get_in(cluster, session_id):
    draw = random.Random(6)
    racers = [
        Racer(draw.choice(cluster.nodes), f"{session_id}.{number}")
        for number in range(SESSIONS)
        for _ in range(RACERS)
    ]
    draw.shuffle(racers)

    async def race(number: int, me: Racer) -> tuple[str, int, int]:
        """Session, own number, and the number of the peer, or minus the close code."""
        await me.join()
        await me.frame(TEXT, b"%d" % number)
        opcode, payload = await me.next_data()
        if opcode == CLOSE:
            return me.session_id, number, -int.from_bytes(payload[:2])
        return me.session_id, number, int(payload)

    await all_ready(cluster)
    async with connected(racers), asyncio.timeout(DEADLINE):
        met = await asyncio.gather(*(race(number, racer) for number, racer in enumerate(racers)))
    by_session: dict[str, dict[int, int]] = {}
    for name, number, peer in met:
        by_session.setdefault(name, {})[number] = peer
    assert len(by_session) == SESSIONS
    for peers in by_session.values():
        inside = {number: peer for number, peer in peers.items() if peer >= 0}
        assert len(inside) == 2, peers
        assert all(inside[peer] == number for number, peer in inside.items()), peers
        assert {peer for peer in peers.values() if peer < 0} == {-4409}, peers
    assert len(await ended(cluster, session_id)) == SESSIONS


async def ended(cluster, session_id: str) -> list[dict]:
    """The lines of a test's sessions, when all are there."""
    async with asyncio.timeout(DEADLINE):
        while True:
            lines = [
                line
                for line in cluster.lines("session_closed")
                if line["session_id"].startswith(f"{session_id}.")
            ]
            if len(lines) >= SESSIONS:
                assert "can't be written to" not in cluster.output(), "nodes lock each other's rows"
                return lines
            await asyncio.sleep(0.2)
