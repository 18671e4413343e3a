"""Files over a connection: names, sizes, SHA-256, resuming what a dropped session left unfinished.

Messages of a connection, each beginning with one byte: `J` and a JSON object, or `D` and a piece of the file.
For each file, in turn:

    sender    J {"name": "a.txt", "size": 123, "sha256": "hex"}
    receiver  J {"have": 100}    bytes from the start that it has already; or J {"refused": "why"}
    sender    D ...              the rest, in pieces of any size
    receiver  J {"done": true}   after the whole has this SHA-256; or J {"refused": "why"}

Then the sender ends. Both sides may send files at once: an offer has a `name`, an answer has none.

Beside that, at any time and without disturbing a transfer:

    T and UTF-8 text             for the person at the other end
    P and up to 16 bytes         a probe, which the other side answers, unless it has ended, with
    Q and the same bytes         to be ignored by who didn't ask

The receiver keeps an unfinished file as `.NAME.SHA256.part` beside the finished ones,
and gives it its name only when all of it is there and right, never over a file that exists.
"""

import asyncio
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from relay.client.connection import RelayConnection

PIECE: Final = 1024 * 1024 - 1
"""Bytes of a file in one message: with its letter a MiB, so that a slow link shows progress."""
MAX_NAME_BYTES: Final = 180
"""Of a name: most file systems allow 255, of which the unfinished file's suffix needs 71."""

MAX_PROBE: Final = 16
"""Bytes that a probe carries at most: room for a number or a nonce, not for data."""

Said = Callable[[str], None]
"""Called with what the person at the other end says: untrusted text."""
Progress = Callable[[str, int, int], None]
"""Called with a file's name, how much of it is through, and its size, in bytes."""


class TransferRefused(Exception):
    """A file can't be sent or taken; the message says which and why."""


class TransferBroken(Exception):
    """The peer does not keep to the file protocol."""


async def send_files(
    peer: RelayConnection, paths: list[Path], progress: Progress, said: Said | None = None
) -> None:
    """Send each of `paths`, which the receiver has on its disk when this returns.

    Raises `TransferRefused`, `TransferBroken`, `OSError`, and what the connection raises.
    """
    answers = _Answers(peer, _of_transfers(peer, said))
    try:
        await _send(peer, paths, progress, answers)
    finally:
        await answers.stop()
    await peer.end()


async def _send(peer: RelayConnection, paths: list[Path], progress: Progress, answers: "_Answers") -> None:
    for path in paths:
        with path.open("rb") as file:
            digest = (await asyncio.to_thread(hashlib.file_digest, file, "sha256")).hexdigest()
            size = file.tell()
            await _tell(peer, name=path.name, size=size, sha256=digest)
            at = _number(await _answer(answers, path.name, "have"), size)
            file.seek(at)
            progress(path.name, at, size)
            while at < size:
                piece = await asyncio.to_thread(file.read, min(PIECE, size - at))
                if not piece:
                    raise TransferRefused(f"{path.name} became shorter while it was sent")
                await peer.send(b"D" + piece)
                at += len(piece)
                progress(path.name, at, size)
            await _answer(answers, path.name, "done")


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
    name, size, digest = safe_name(offer.get("name")), _size(offer), offer.get("sha256")
    if not _is_digest(digest):
        raise TransferBroken("the peer offered a file without a SHA-256")
    final, part = folder / name, folder / f".{name}.{digest}.part"
    if final.is_symlink() or final.exists():
        if not final.is_file() or await asyncio.to_thread(_digest, final) != digest:
            raise TransferRefused(f"{name} exists already, and nothing is overwritten")
        progress(name, size, size)  # it came over before the session dropped
        await _tell(peer, have=size)
        await _tell(peer, done=True)
        return final
    _check_room(part, name, size)
    # Whoever else may write here must not lead us elsewhere by a link.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(part, flags, 0o666), "r+b") as file:
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(0)
        file.seek(0)
        check = await asyncio.to_thread(hashlib.file_digest, file, "sha256")
        at = file.tell()
        progress(name, at, size)
        await _tell(peer, have=at)

        def keep(piece: memoryview) -> None:
            file.write(piece)
            check.update(piece)

        keeping = asyncio.ensure_future(asyncio.sleep(0))
        try:
            while at < size:
                piece = await anext(messages, b"")
                if not piece.startswith(b"D") or not 1 < len(piece) <= 1 + size - at:
                    raise TransferBroken(f"the peer sent something else than the rest of {name}")
                # One piece is written and hashed while the next one is received and decrypted.
                await keeping
                keeping = asyncio.ensure_future(asyncio.to_thread(keep, memoryview(piece)[1:]))
                at += len(piece) - 1
                progress(name, at, size)
        finally:
            await keeping  # nobody writes to a file that is closed
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    if check.hexdigest() != digest:
        part.unlink()
        raise TransferRefused(f"{name} came over damaged (its SHA-256 is another); what came is deleted")
    try:
        os.link(part, final)  # unlike a rename, this never replaces what came to be there meanwhile
    except FileExistsError:
        raise TransferRefused(f"{name} exists already, and nothing is overwritten") from None
    part.unlink()
    await _tell(peer, done=True)
    return final


def safe_name(name: object) -> str:
    """`name` where it is a plain file name on every system; raises `TransferRefused` where it isn't."""
    plain = (
        isinstance(name, str)
        and name == name.strip()
        and not name.startswith(".")  # neither a parent folder nor a hidden file
        and not any(
            c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name
        )
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
    )
    if not plain:
        raise TransferRefused(f"{name!r} is not a name that files are taken under")
    return str(name)


def _check_room(part: Path, name: str, size: int) -> None:
    """Refuse now what the disk could not hold in the end."""
    have = part.lstat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if size - have > free:
        raise TransferRefused(f"{name} has {size} bytes, and the disk has room for {free}")


def _size(offer: dict[str, Any]) -> int:
    size = offer.get("size")
    if type(size) is not int or size < 0:
        raise TransferBroken("the peer offered a file without a size")
    return size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


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
