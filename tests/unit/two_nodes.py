"""Two nodes in one process, on a virtual clock: their sessions, what is between them, and what they record.

All of it is the relay's own code but for the sockets, the channel layer and the ledger, which do as a test
says.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

import relay.links.exchange
import relay.sessions.service
from relay import conf
from relay.ledger import LegRecord, SessionRecord
from relay.ledger.records import merge
from relay.rendezvous.memory import MemoryRendezvous
from relay.rules.closing import Close
from relay.rules.grants import Grant
from relay.rules.roles import Role
from relay.sessions import Leg, Port, Sessions
from tests.unit.virtual import VirtualLoop

Message = dict[str, Any]

ONE_WAY_SECONDS = 0.001
"""How long a message takes from one node to the other."""


OPENER, EARLIER = "opener:1:1", datetime(2026, 11, 3, 12, tzinfo=UTC)
"""The node where the first leg of a `Pair` came, and when it did."""


class Book:
    """A ledger: keeps the newest of each session, as the real one does, and says it's safe when told to."""

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []
        self.hangs = False
        """Nothing is safe while this is set."""
        self.dead = False
        """Nothing is taken any more."""
        self._asked: list[Future[None]] = []

    spool_error = ""

    def record(self, record: SessionRecord) -> None:
        if not self.dead:
            self.records.append(record)

    def close(self, timeout: float) -> bool:
        return not self.hangs

    def safe(self, session: UUID, *, printed: bool = False) -> "Future[None]":
        self._asked.append(Future())
        if not self.hangs:
            self.works_again()
            return Future() if self.dead else _done()
        return self._asked[-1]

    def works_again(self) -> None:
        self.hangs = False
        asked, self._asked = self._asked, []
        for future in asked:
            if not self.dead and future.set_running_or_notify_cancel():
                future.set_result(None)

    @property
    def last(self) -> SessionRecord:
        """What it knows of its one session."""
        merged = None
        for record in self.records:
            merged = merge(merged, record)
        assert merged is not None
        return merged

    @property
    def leg(self) -> LegRecord:
        """The one leg of that."""
        (leg,) = self.last.legs
        return leg

    @property
    def ends(self) -> list[SessionRecord]:
        """The closed records, as they came."""
        return [record for record in self.records if record.closed]


def _done() -> "Future[None]":
    done: Future[None] = Future()
    done.set_result(None)
    return done


class Socket:
    """A leg's client, seen from its node: what it was sent, and whether it takes it."""

    def __init__(self) -> None:
        self.received: list[bytes | str] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.offered = 0
        """Frames that the node has begun to send, taken or not."""
        self.is_gone = False

    async def send(self, message: Message) -> None:
        self.offered += 1
        if self.is_gone:
            raise OSError("the socket is gone")
        await self.reads.wait()
        data = message.get("bytes")
        self.received.append(message["text"] if data is None else data)

    @property
    def nbytes(self) -> int:
        return sum(len(f.encode() if isinstance(f, str) else f) for f in self.received)


class Node:
    """One process."""

    def __init__(self, network: "Network", **settings: Any) -> None:
        self._network = network
        self.book = Book()
        loop = asyncio.get_running_loop()
        self.sessions = Sessions(
            conf.RelaySettings(**settings), network.store, self.book, clock=loop.time, many_nodes=True
        )
        exchange = self.sessions._exchange
        assert exchange is not None
        self.exchange = exchange
        self.exchange.send = self._send  # type: ignore[method-assign]
        self.sent: list[Message] = []
        """To other nodes, lost or not."""
        self.cut_off = False
        """It has no Redis: what it sends fails, and it receives nothing."""
        self.heard_by_nobody = False
        """What it sends goes out, and is lost."""

    async def _send(self, channel: str, message: Message) -> None:
        await self._network.carry(self, channel, message)

    async def join(
        self,
        session_id: str,
        role: Role | None = None,
        subject: str | None = None,
        account_id: str | None = None,
    ) -> tuple[Leg, Socket]:
        """A leg of its own, and its socket."""
        socket = Socket()
        grant = Grant(subject, account_id, role, None, "a token")
        return await self.sessions.join(session_id, grant, Port(socket.send, "192.0.2.1")), socket

    def kill(self) -> None:
        """It does, says and hears nothing from now on."""
        self.book.dead = self.heard_by_nobody = True
        self._network.layer.deaf.add(self.exchange.channel)

    @property
    def knows_nothing(self) -> bool:
        """Whether it has forgotten all sessions, and has nothing left to do for them."""
        here = self.sessions
        return not (here._live or here._remote or here._tasks or self.exchange._receivers)


class Layer:
    """What is there of a channel layer for both nodes."""

    def __init__(self) -> None:
        self.queues: dict[str, asyncio.Queue[Message]] = {}
        self.deaf: set[str] = set()
        self.groups: list[tuple[str, Message]] = []
        """What was sent to groups."""
        self.is_away = False

    async def new_channel(self) -> str:
        name = f"channel {len(self.queues)}"
        self.queues[name] = asyncio.Queue()
        return name

    async def receive(self, channel: str) -> Message:
        return await self.queues[channel].get()

    async def group_send(self, group: str, message: Message) -> None:
        if self.is_away:
            raise OSError("the channel layer is away")
        self.groups.append((group, message))


class Network:
    """What is between the nodes: a rendezvous, and a channel layer that may lose what a test picks."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.store = MemoryRendezvous()
        self.nodes: list[Node] = []
        self.loses: Callable[[Message], bool] = lambda message: False

    def node(self, **settings: Any) -> Node:
        self.nodes.append(Node(self, **settings))
        return self.nodes[-1]

    async def carry(self, sender: Node, channel: str, message: Message) -> None:
        if sender.cut_off:
            raise OSError("Redis is away")
        message = copy.deepcopy(message)
        sender.sent.append(message)
        await asyncio.sleep(ONE_WAY_SECONDS)
        if sender.heard_by_nobody or channel in self.layer.deaf or self.loses(message):
            return
        if any(node.cut_off for node in self.nodes if node.exchange.channel == channel):
            return
        self.layer.queues[channel].put_nowait(message)


class Pair:
    """A session between the first node, which opens it with its client, and the second one."""

    def __init__(self, layer: Layer, **settings: Any) -> None:
        self.network = network = Network(layer)
        self.owner, self.other = network.node(**settings), network.node(**settings)

    async def meet(
        self,
        account_of_client: str | None = None,
        account_of_server: str | None = None,
        opens: Role = Role.CLIENT,
    ) -> "Pair":
        """Both legs join, and know of each other."""
        accounts = {Role.CLIENT: account_of_client, Role.SERVER: account_of_server}
        self.leg, self.socket = await self.owner.join("room", opens, "alice", accounts[opens])
        # Both nodes are this process, and this takes no time.
        self.leg.live.node, self.leg.live.started_at = OPENER, EARLIER
        await asyncio.sleep(2)  # one waits for the other
        role = opens.other
        self.peer_leg, self.peer_socket = await self.other.join("room", role, "bob", accounts[role])
        await asyncio.gather(self.leg.paired, self.peer_leg.paired)
        return self

    async def exchange(self) -> None:
        """Two frames and five bytes of text to the second node, three and 300 of binary back; all arrive."""
        for text in ("one", "tw"):
            await self.leg.link.forward({"text": text})
        for _ in range(3):
            await self.peer_leg.link.forward({"bytes": bytes(100)})
        await asyncio.sleep(0.1)
        assert self.peer_socket.received == ["one", "tw"]
        assert self.socket.received == [bytes(100)] * 3

    def leave(self, close: Close | None = None) -> None:
        """The owner's client leaves."""
        self.owner.sessions.gone(self.leg, close or Close.by_peer(4321, "done"))

    def peer_leaves(self, close: Close | None = None) -> None:
        """The other one does."""
        self.other.sessions.gone(self.peer_leg, close or Close.by_peer(4321, "done"))


def counts(record: SessionRecord) -> tuple[int, int, int, int]:
    """Frames and bytes from client to server, and the other way."""
    return (
        record.frames_client_to_server,
        record.bytes_client_to_server,
        record.frames_server_to_client,
        record.bytes_server_to_client,
    )


EXCHANGED = (2, 5, 3, 300)
"""The counts of `Pair.exchange`."""


async def over(work: Awaitable[Any]) -> float:
    """How many seconds of the loop `work` takes."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    began = loop.time()
    await work
    return loop.time() - began


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    """The channel layer of all nodes."""
    layer = Layer()
    for module in (relay.links.exchange, relay.sessions.service):
        monkeypatch.setattr(module, "get_channel_layer", lambda: layer)
    return layer
