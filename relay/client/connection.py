"""A connection to the peer of a session, encrypted end to end: the library's one entry point.

    async with RelayConnection("ws://127.0.0.1:8001", "demo", token, key=key, rule=rule) as peer:
        await peer.send(b"hello")
        async for message in peer:
            ...

The block is entered once the peer is there and both sides have accepted each other; until then nothing of the
application has passed. Leaving it sends the encrypted end, so the peer knows that it has everything.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import process_exception
from websockets.exceptions import (
    ConcurrencyError,
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)

from relay.client.noise import MAX_MESSAGE, Handshake, NoiseError, Transport
from relay.client.patience import Patience
from relay.client.peers import PeerRefused, PeerRule, vouching
from relay.client.wire import (
    MAX_MESSAGE_BYTES,
    REFUSED,
    Channel,
    Record,
    WireError,
    agree,
    fingerprint,
    hello,
    parts,
    words,
)

log = logging.getLogger(__name__)

COME_BACK: Final = frozenset({1012, 1013, 4411})
"""Close codes by which the relay asks to come back: it restarts, can't admit now, or the peer came anew."""

SENTENCES: Final = {
    1006: "the connection to the relay dropped",
    1009: "a message is larger than the relay allows",
    1012: "the relay restarts",
    1013: "the relay can't admit anyone just now",
    REFUSED: "the peer does not accept our key",
    4401: "the relay does not accept the token: it is missing, expired or not valid",
    4403: "the token is for another session or role",
    4408: "the peer did not come in time",
    4409: "both places of this session are taken",
    4410: "the peer's connection dropped",
    4411: "a participant connected again, so the session begins anew",
    4412: "nothing passed either way for too long",
    4413: "the receiver took nothing while data waited for it",
    4414: "the session reached its longest duration",
    4415: "the link between two nodes of the relay broke",
    4429: "a quota is used up",
    4499: "an operator closed the session",
}
"""What each close code means, for people."""


class Closed(Exception):
    """The connection ended without the peer's end, so the last messages may be missing.

    `code` is the WebSocket close code, 1006 where it dropped; 0 where the relay could not be reached at all.
    """

    def __init__(self, code: int, *, held: float = 0.0) -> None:
        self.code = code
        self.held = held
        """Seconds for which this side's WebSocket was open."""
        super().__init__(SENTENCES.get(code) or f"the peer left before it was done (close code {code})")

    @property
    def come_back(self) -> bool:
        """Whether to connect again is what the close asks for."""
        return self.code in COME_BACK


class Unreachable(Closed):
    """There is no connection to the relay; the message says why, `code` is 0."""

    def __init__(self, error: Exception) -> None:
        super().__init__(0)
        self.args = (f"can't connect to the relay: {error}",)
        self._passes = _passes(error)

    @property
    def come_back(self) -> bool:
        """Whether it may be otherwise soon, as nothing about it looks as if it were set up wrongly."""
        return self._passes


class RelayConnection:
    """One side of a session. Not reusable: make a new one to connect again.

    url: `ws://` or `wss://`, host and port of the relay. token: the JWT that opens the session.
    key: this side's static key. rule: whom to accept. vouching_token: shown to the peer as proof of our key;
    never the one that opens the session (see `relay.client.wire`). verify: called with the words for two
    people to compare and the peer's fingerprint, and refuses the peer by giving False; it may take its time,
    and is cancelled where the connection closes meanwhile.
    max_message_bytes: the longest message that is taken from the peer.
    connect_seconds: how long to try again, with growing pauses, while the relay can't be reached or asks to
    come back, from the first such failure in a row on; 0 is one attempt. handshake_seconds: for the peer to
    answer once it is there, people not counted. close_seconds: for the peer to finish, too, on leaving.
    silence_seconds: without an answer from the relay's machine to what was sent, a ping at least, after which
    the connection counts as dropped (on systems that have TCP_USER_TIMEOUT, RFC 5482).

    Raises on entering: `Closed` (relay or peer refused or left, `Unreachable` without a connection),
    `PeerRefused` (we did), `WireError` and `NoiseError` (not our protocol, or someone in between),
    `ValueError` (not a URL, or no proxy that can be used), `TimeoutError`, and what `verify` raises.
    Raises on making: `ValueError` where the vouching token is none, or not for this key and session.
    """

    def __init__(
        self,
        url: str,
        session_id: str,
        token: str,
        *,
        key: X25519PrivateKey,
        rule: PeerRule,
        vouching_token: str = "",
        verify: Callable[[str, str], Awaitable[bool]] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        connect_seconds: float = 60.0,
        handshake_seconds: float = 30.0,
        close_seconds: float = 10.0,
        silence_seconds: float = 60.0,
    ) -> None:
        self._url = f"{url.rstrip('/')}/relay/{session_id}"
        self._session_id = session_id
        self._token = token
        self._key = key
        self._rule = rule
        self._vouching = vouching(vouching_token, key.public_key().public_bytes_raw(), session_id)
        self._verify = verify
        self._max_message_bytes = max_message_bytes
        self._connect_seconds = connect_seconds
        self._handshake_seconds = handshake_seconds
        self._close_seconds = close_seconds
        self._silence_seconds = silence_seconds
        self._sending = asyncio.Lock()
        self._socket: ClientConnection
        self._opened = 0.0
        self._channel: Channel
        self.words = ""
        """What two people compare to know that nobody is in between."""
        self.peer_fingerprint = ""
        """The peer's key as `SHA256:...`."""

    async def __aenter__(self) -> Self:
        now = asyncio.get_running_loop().time
        patience = Patience(self._connect_seconds)
        while True:
            try:
                return await self._enter()
            except Closed as error:
                if not error.come_back or (pause := patience.failed(now(), error.held)) is None:
                    raise
                log.warning("%s; trying again", error)
            await asyncio.sleep(pause)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the end and wait for the peer's; after an error just leave: the peer sees it cut short."""
        if kind is not None:
            await self._leave(1001)
            return
        try:
            async with asyncio.timeout(self._close_seconds):
                await self.end()
                async for _ in self:
                    pass
        except TimeoutError:
            pass  # the peer goes on sending, or is stuck; it has all of ours, or learns that it has not
        finally:
            await self._leave(1000)

    async def send(self, message: bytes | memoryview) -> None:
        """Send a message of any length the peer takes; returns when there is room for the next one.

        Raises `Closed`, and `WireError` after `end`. When it is cancelled, the connection is of no more use.
        """
        async with self._sending:
            for kind, body in parts(message):
                await self._send(self._channel.seal(kind, body))

    async def end(self) -> None:
        """Tell the peer that this was all; its messages can still be received. Twice does no harm."""
        async with self._sending:
            if not self._channel.closed:
                await self._send(self._channel.seal(Record.END))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The peer's messages until its end; nothing is read ahead of who iterates but one small queue.

        Raises `Closed` where the connection ends before the peer's end, `WireError` and `NoiseError` where
        somebody tampers with it.
        """
        while not self._channel.ended:
            received = await self._receive()
            try:
                message = self._channel.open(received)
            except (NoiseError, WireError):
                await self._leave(1002)
                raise
            if message is not None:
                yield message

    async def _enter(self) -> Self:
        try:
            self._socket = await connect(
                self._url,
                additional_headers={"Authorization": f"Bearer {self._token}"},
                compression=None,  # ciphertext does not shrink
                max_size=MAX_MESSAGE,
                # No time-out for pongs: they wait behind data while the application takes its time to read.
                # Pings all the same, as something has to be sent to find that nobody is there any more.
                ping_timeout=None,
                ping_interval=self._silence_seconds / 3,
                close_timeout=self._close_seconds,
            )
        except (InvalidURI, InvalidProxy, ImportError) as error:  # a SOCKS proxy needs another library
            raise ValueError(str(error)) from None
        except (InvalidHandshake, EOFError, TimeoutError, OSError) as error:
            raise Unreachable(error) from None
        self._opened = asyncio.get_running_loop().time()
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self._socket.transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._silence_seconds * 1000)
            )
        try:
            await self._meet()
        except BaseException as error:
            refused = isinstance(error, PeerRefused | NoiseError | WireError)
            await self._leave(REFUSED if refused else 1001)
            raise
        return self

    async def _meet(self) -> None:
        """Hello, handshake, and the checks of the peer, up to both sides being ready."""
        ours = hello()
        await self._send(ours)
        log.info("waiting for the peer")
        theirs = await self._receive()  # comes with the peer, for which the relay has a time-out
        initiator, prologue = agree(self._session_id, ours, theirs)
        async with asyncio.timeout(self._handshake_seconds):
            transport, vouched = await self._shake_hands(initiator, prologue)
        self.peer_fingerprint = fingerprint(transport.remote_static)
        self.words = words(transport.handshake_hash)
        self._rule.check(transport.remote_static, self._session_id, vouched)
        if self._verify is not None:
            await self._compare(self._verify)
        self._rule.accepted(transport.remote_static, self._session_id)
        log.info("the peer is here, with the key %s", self.peer_fingerprint)
        self._channel = Channel(transport, self._max_message_bytes)
        await self._send(self._channel.seal(Record.READY))
        self._channel.open(await self._receive())  # nothing but `ready` can be first

    async def _compare(self, verify: Callable[[str, str], Awaitable[bool]]) -> None:
        """Have the words compared, for as long as there is somebody to compare them with."""
        asking = asyncio.ensure_future(verify(self.words, self.peer_fingerprint))
        gone = asyncio.ensure_future(self._socket.wait_closed())
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise self._closed(self._socket.close_code)
            if not asking.result():
                raise PeerRefused("the words on the two sides are not the same")
        finally:
            for task in (asking, gone):
                task.cancel()
            await asyncio.wait({asking, gone})

    async def _shake_hands(self, initiator: bool, prologue: bytes) -> tuple[Transport, bytes]:
        handshake = Handshake(initiator=initiator, prologue=prologue, static=self._key)
        vouched = b""
        first = True
        while not handshake.complete:
            if handshake.writes:
                await self._send(handshake.write(b"" if first else self._vouching))
            else:
                vouched = handshake.read(await self._receive())
            first = False
        return handshake.split(), vouched

    async def _leave(self, code: int) -> None:
        # The library stops reading when nobody takes what came, and then never sees the answer to its close.
        dropping = asyncio.create_task(self._drop())
        try:
            await self._socket.close(code)
        finally:
            self._socket.transport.abort()  # where that was cancelled it would stay open; else it's closed
            dropping.cancel()

    async def _drop(self) -> None:
        with contextlib.suppress(ConnectionClosed, ConcurrencyError):
            while True:
                await self._socket.recv()

    def _closed(self, code: int | None) -> Closed:
        """The connection closed; without a code it dropped."""
        return Closed(code or 1006, held=asyncio.get_running_loop().time() - self._opened)

    async def _send(self, message: bytes) -> None:
        try:
            await self._socket.send(message)
        except ConnectionClosed as error:
            raise self._closed(error.rcvd.code if error.rcvd else None) from None

    async def _receive(self) -> bytes:
        try:
            message = await self._socket.recv()
        except ConnectionClosed as error:
            raise self._closed(error.rcvd.code if error.rcvd else None) from None
        if isinstance(message, str):
            raise WireError("the peer sent a text message")
        return message


def _passes(error: Exception) -> bool:
    """Whether what keeps us from the relay may be over soon; a wrong path or certificate stays wrong."""
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError)  # as when a balancer restarts
    if isinstance(error, InvalidStatus) and error.response.status_code in (408, 425, 429):
        return True  # which ask for patience, by RFC 9110, 8470 and 6585
    return isinstance(error, EOFError) or process_exception(error) is None
