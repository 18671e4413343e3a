"""Files over a connection: names, sizes, SHA-256, resuming what a dropped session left unfinished.

Messages of a connection, each beginning with one byte: `J` and a JSON object, or `D` and a piece of the file.
For each file, in turn:

    sender    J {"name": "a.txt", "size": 123}
    receiver  J {"have": 100}      bytes that it has under this name and size
    sender    J {"sha256": "hex"}  of that many of its first bytes
    receiver  J {"begin": 100}     where they are the same, or else J {"begin": 0}
    sender    D ...                what comes from there on, in pieces of any size
    sender    J {"sha256": "hex"}  of the whole file
    receiver  J {"done": true}     after it has a file with that SHA-256

The third and the fourth only where there is something. Instead of any of its answers the receiver may say
J {"refused": "why"}, which is the end of that file. After the last one the sender ends.

So a file is read once, while it is sent, and what was left unfinished goes on only where it is of the same
file: the receiver doesn't say what it has, but whether it's equal. Both sides may send files at once: `name`
and `sha256` are the sender's, everything else is an answer.

Beside that, at any time and without disturbing a transfer:

    T and UTF-8 text             for the person at the other end
    P and up to 16 bytes         a probe, which the other side answers, unless it has ended, with
    Q and the same bytes         to be ignored by who didn't ask

While a file is under way each side sends a probe now and then: to read and hash what is there of a large one
may take longer than the relay leaves a session in which nothing passes. Who only waits for files is silent,
so that a forgotten session ends.
"""

import asyncio
import hashlib
import itertools
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Protocol

from relay.client.awake import awake
from relay.client.connection import RelayConnection
from relay.client.disk import TransferRefused, Unfinished, exists, safe_name

PIECE: Final = 1024 * 1024 - 1
"""Bytes of a file in one message: with its letter a MiB, so that a slow link shows progress."""
PIECES: Final = 4
"""How many are read or written at once, and hashed, in a thread beside: each hop to one costs a third of a
millisecond when the cores are busy."""
MAX_PROBE: Final = 16
"""Bytes that a probe carries at most: room for a number or a nonce, not for data."""

Said = Callable[[str], None]
"""Called with what the person at the other end says: untrusted text."""
Progress = Callable[[str, int, int], None]
"""Called with a file's name, how much of it is through, and its size, in bytes."""


class TransferBroken(Exception):
    """The peer does not keep to the file protocol."""


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


async def send_files(
    peer: RelayConnection, paths: list[Path], progress: Progress, said: Said | None = None
) -> None:
    """Send each of `paths`, which the receiver has on its disk when this returns.

    Raises `TransferRefused`, `TransferBroken`, `OSError`, and what the connection raises.
    """
    answers = _Answers(peer, _of_transfers(peer, said))
    try:
        async with awake(lambda: peer.send(b"P")):
            for path in paths:
                with path.open("rb") as file:
                    await _send(peer, path.name, file, progress, answers)
    finally:
        await answers.stop()
    await peer.end()


async def _send(
    peer: RelayConnection, name: str, file: BufferedReader, progress: Progress, answers: "_Answers"
) -> None:
    size = os.fstat(file.fileno()).st_size
    if size == 0 and file.read(1):
        raise TransferRefused(f"{name} has no size before it is read: send it through `pipe`")
    await _tell(peer, name=name, size=size)
    at = _number(await _answer(answers, name, "have"), size)
    check = hashlib.sha256()
    if at:
        async with aclosing(_messages(name, file, check, at)) as messages:
            async for _ in messages:
                pass
        await _tell(peer, sha256=check.hexdigest())
        begin = await _answer(answers, name, "begin")
        if begin not in (0, at):
            raise TransferBroken("the peer begins where it has nothing")
        if begin == 0:
            at = file.seek(0)
            check = hashlib.sha256()
    progress(name, at, size)
    async with aclosing(_messages(name, file, check, size - at)) as messages:
        async for message in messages:
            await peer.send(message)
            at += len(message) - 1
            progress(name, at, size)
    await _tell(peer, sha256=check.hexdigest())
    await _answer(answers, name, "done")


async def _messages(
    name: str, file: BufferedReader, check: _Hash, size: int
) -> AsyncGenerator[memoryview, None]:
    """The next `size` bytes as messages, each valid until the next one is asked for; `check` has them, too.

    Some are read while those before them are sent.
    """
    # Made once, with the letter in front of each piece: making and copying them costs as much as the cipher.
    buffers = itertools.cycle(memoryview(bytearray((b"D" + bytes(PIECE)) * PIECES)) for _ in range(2))

    def read(buffer: memoryview, most: int) -> list[memoryview]:
        filled = []
        for at in range(0, len(buffer), 1 + PIECE):
            length = file.readinto(buffer[at + 1 : at + 1 + min(PIECE, most)])
            if not length:
                break
            check.update(buffer[at + 1 : at + 1 + length])
            filled.append(buffer[at : at + 1 + length])
            most -= length
        return filled

    def begin() -> asyncio.Future[list[memoryview]]:
        return asyncio.ensure_future(asyncio.to_thread(read, next(buffers), size))

    reading = begin()
    try:
        while size:
            filled = await reading
            if not filled:
                raise TransferRefused(f"{name} became shorter while it was sent")
            size -= sum(len(message) - 1 for message in filled)
            reading = begin()
            for message in filled:
                yield message
    finally:
        await asyncio.wait([reading])  # nobody reads a file that is closed


async def receive_files(
    peer: RelayConnection,
    folder: Path,
    progress: Progress,
    said: Said | None = None,
    *,
    max_bytes: int | None = None,
) -> list[Path]:
    """Take files into `folder` until the sender ends; gives where they are.

    max_bytes: the most that is taken of one connection; without it, what the disk has room for: the peer is
    one that was accepted, and any figure would be wrong for somebody.

    Raises `TransferRefused` (the sender hears it, too), `TransferBroken`, `OSError`, and what the connection
    raises.
    """
    taken = []
    offered = 0
    messages = _of_transfers(peer, said)
    async for message in messages:
        offer = _json(message)
        try:
            offered += _size(offer)
            if max_bytes is not None and offered > max_bytes:
                raise TransferRefused(f"no more than {max_bytes} bytes are taken, and here are {offered}")
            async with awake(lambda: peer.send(b"P")):
                taken.append(await _receive(peer, messages, folder, offer, progress))
        except TransferRefused as error:
            await _tell(peer, refused=str(error))
            await peer.end()
            raise
    return taken


async def _receive(
    peer: RelayConnection,
    messages: AsyncIterator[bytes],
    folder: Path,
    offer: dict[str, Any],
    progress: Progress,
) -> Path:
    name, size = safe_name(offer.get("name")), _size(offer)
    final = folder / name
    if final.is_symlink() or final.exists():
        await _compare(peer, messages, final, size)  # it may have come over before the session dropped
        progress(name, size, size)
        return final
    with Unfinished(folder, name, size) as part:
        at = await asyncio.to_thread(part.read)
        await _tell(peer, have=at)
        if at:
            if await _digest_said(messages) != part.sha256:
                part.clear()
                at = 0
            await _tell(peer, begin=at)
        progress(name, at, size)
        await _take(messages, part, name, at, size, progress)
        await asyncio.to_thread(part.finish, await _digest_said(messages))
    await _tell(peer, done=True)
    return final


async def _compare(peer: RelayConnection, messages: AsyncIterator[bytes], final: Path, size: int) -> None:
    """Have the sender find out that its file is here, or raise `TransferRefused`."""
    if await asyncio.to_thread(_size_of, final) != size:
        raise exists(final.name)
    await _tell(peer, have=size)
    ours = await asyncio.to_thread(_digest, final)
    if size:
        if await _digest_said(messages) != ours:
            raise exists(final.name)
        await _tell(peer, begin=size)
    if await _digest_said(messages) != ours:
        raise exists(final.name)
    await _tell(peer, done=True)


async def _take(
    messages: AsyncIterator[bytes], part: Unfinished, name: str, at: int, size: int, progress: Progress
) -> None:
    """The rest of the file. Some of it is written and hashed while more is received and decrypted."""
    pieces: list[memoryview] = []
    waiting = 0
    keeping = asyncio.ensure_future(asyncio.sleep(0))
    try:
        while at < size:
            piece = await anext(messages, b"")
            if not piece.startswith(b"D") or not 1 < len(piece) <= 1 + size - at:
                raise TransferBroken(f"the peer sent something else than the rest of {name}")
            pieces.append(memoryview(piece)[1:])
            at += len(piece) - 1
            waiting += len(piece) - 1
            if waiting >= PIECES * PIECE:
                await keeping
                keeping = asyncio.ensure_future(asyncio.to_thread(part.append, pieces))
                pieces, waiting = [], 0
            progress(name, at, size)
    finally:
        await keeping
        part.append(pieces)  # when the session dropped, too: it goes on from there


def _size(offer: dict[str, Any]) -> int:
    size = offer.get("size")
    if type(size) is not int or size < 0:
        raise TransferBroken("the peer offered a file without a size")
    return size


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _digest_said(messages: AsyncIterator[bytes]) -> str:
    digest = _json(await anext(messages, b"")).get("sha256")
    if not isinstance(digest, str):
        raise TransferBroken("the peer did not say which SHA-256 its file has")
    return digest


async def _tell(peer: RelayConnection, **values: Any) -> None:
    await peer.send(b"J" + json.dumps(values).encode())


async def _of_transfers(peer: RelayConnection, said: Said | None) -> AsyncIterator[bytes]:
    """The peer's messages that belong to a transfer; what may come at any time is seen to here."""
    async for message in peer:
        match message[:1]:
            case b"P" if len(message) <= 1 + MAX_PROBE:
                await peer.send(b"Q" + message[1:])
            case b"T":
                if said is not None:
                    said(message[1:].decode(errors="replace"))
            case b"Q":
                pass
            case _:
                yield message


class _Answers:
    """The receiver's answers, read while files are sent, as it may talk and probe meanwhile."""

    def __init__(self, peer: RelayConnection, messages: AsyncIterator[bytes]) -> None:
        self._peer = peer
        # As short as can be: when nobody takes them, nothing more is read.
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        self._reading = asyncio.create_task(self._read(messages))

    async def _read(self, messages: AsyncIterator[bytes]) -> None:
        async for message in messages:
            answer = _json(message)
            if "name" in answer:
                await _tell(self._peer, refused="nothing is taken while files are sent")
            else:
                await self._queue.put(answer)

    async def next(self) -> dict[str, Any]:
        """The next one, empty when the receiver has ended; raises what the connection raises."""
        getting = asyncio.create_task(self._queue.get())
        await asyncio.wait({getting, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        getting.cancel()
        self._reading.result()
        return {}

    async def stop(self) -> None:
        """Leave the peer's further messages to others."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
        if not self._reading.cancelled():
            self._reading.exception()  # whoever sends or waits has met it


async def _answer(answers: _Answers, name: str, wanted: str) -> Any:
    answer = await answers.next()
    if "refused" in answer:
        raise TransferRefused(f"the receiver refuses: {printable(answer['refused'])}")
    if wanted not in answer:
        raise TransferBroken(f"the peer did not answer on {name}")
    return answer[wanted]


def _json(message: bytes) -> dict[str, Any]:
    try:
        value = json.loads(message[1:]) if message[:1] == b"J" else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TransferBroken("the peer does not speak the file protocol")
    return value


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise TransferBroken("the peer says that it has more than there is")
    return value


def printable(text: object, length: int = 300) -> str:
    """What a peer says, made safe to show on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:length])
