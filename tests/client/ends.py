"""Both ends of an encrypted session for tests, and a tap on what the relay process gets to see."""

import asyncio
import itertools
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from relay.client.connection import RelayConnection
from relay.client.peers import Fingerprint
from relay.client.wire import fingerprint
from tests.tokens import token

ALICE, BOB = X25519PrivateKey.generate(), X25519PrivateKey.generate()
OF_ALICE, OF_BOB = (fingerprint(key.public_key().public_bytes_raw()) for key in (ALICE, BOB))

SECONDS = 20.0
"""Deadline for what tests wait for; never how long it takes."""


def alice(url: str, session_id: str, **options: Any) -> RelayConnection:
    """A side that expects Bob, unless the options say otherwise."""
    options = {"key": ALICE, "rule": Fingerprint(OF_BOB), "token": token(sub="alice")} | options
    return RelayConnection(url, session_id, **options)


def bob(url: str, session_id: str, **options: Any) -> RelayConnection:
    """A side that expects Alice, unless the options say otherwise."""
    options = {"key": BOB, "rule": Fingerprint(OF_ALICE), "token": token(sub="bob")} | options
    return RelayConnection(url, session_id, **options)


async def outcome(side: RelayConnection) -> BaseException | list[bytes]:
    """What becomes of a side that only listens: the messages it got, or why it got none."""
    try:
        async with asyncio.timeout(SECONDS), side as peer:
            await peer.end()
            return [message async for message in peer]
    except Exception as error:  # noqa: BLE001 - whatever it is is the outcome
        return error


class Tap:
    """Stands between the peers and the relay, and keeps every byte that passes, both ways."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server
        self.seen = bytearray()
        self._more = asyncio.Event()
        self.url = ""
        self.cut_after: int | None = None
        """Bytes seen after which the connection under way is cut, once."""
        self.lost: list[asyncio.StreamWriter] = []
        """To the relay: connections whose peer is gone without the relay's knowing."""
        self._peers: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._released = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Tap":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for writer in itertools.chain(*self._peers):
            writer.transport.abort()
        self.release()
        if self._serving:
            await asyncio.wait(self._serving)

    async def shows(self, text: bytes) -> None:
        """Wait until `text` has passed."""
        while text not in self.seen:
            self._more.clear()
            await self._more.wait()

    def lose(self) -> None:
        """Drop the peers that are connected; the relay goes on seeing them until `release`."""
        for peer, relay in self._peers:
            self.lost.append(relay)
            peer.transport.abort()

    def release(self) -> None:
        """Let the relay know, too."""
        self._released.set()
        for relay in self.lost:
            relay.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # as it is while the relay restarts
            writer.close()
            return
        self._peers.append((writer, ours))
        await asyncio.gather(self._copy(reader, ours), self._copy(theirs, writer))
        self._peers.remove((writer, ours))
        if ours in self.lost:
            await self._released.wait()
        ours.transport.abort()
        writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.seen += data
                self._more.set()
                if self.cut_after is not None and len(self.seen) > self.cut_after:
                    self.cut_after = None
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            if writer not in self.lost:
                writer.close()
