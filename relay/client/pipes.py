"""Bytes between two file descriptors and the peer, both directions at once, each ending by itself."""

import asyncio
import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from relay.client.awake import awake
from relay.client.connection import Closed, RelayConnection

PIECE: Final = 65_518
"""Bytes read at once: what fits one record."""
AHEAD: Final = 16 * PIECE
"""Bytes read before they can be sent, or received before they can be written: each side goes on meanwhile."""


async def pipe_through(peer: RelayConnection, source: int, target: int) -> None:
    """Send what `source` has until its end, and write what the peer sends to `target` until its end.

    An empty message is a sign of life, for which there may be nothing else: `pipe` carries what it's given.
    Returns after both ends; `target` is closed at the peer's. Raises what the connection raises, and
    `OSError` where one of the two can't be used.
    """
    writer = _Writer(target)
    sending = asyncio.create_task(_send(peer, _Reader(source)))
    receiving = asyncio.create_task(_receive(peer, writer))
    tasks = {sending, receiving, writer.finished}
    try:
        async with awake(lambda: peer.send(b"")):
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if sending in done and isinstance(sending.exception(), Closed):
                await asyncio.wait([receiving])  # which has that, too, after what came before
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _send(peer: RelayConnection, reader: "_Reader") -> None:
    try:
        while piece := await reader.next():
            await peer.send(piece)
        await peer.end()
    finally:
        reader.stop()


async def _receive(peer: RelayConnection, writer: "_Writer") -> None:
    try:
        async for message in peer:
            await writer.put(message)
    except asyncio.CancelledError:
        writer.stop()
        raise
    except Exception:
        writer.end()
        await asyncio.wait([writer.finished])  # what came before it broke off is not lost
        raise
    writer.end()


class _Threaded:
    """A thread of its own, as any kind of descriptor can be used in one without anybody else waiting for it.

    It dies with the process, as a terminal may have nothing to read for ever.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=work, daemon=True).start()

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop closed meanwhile, and nobody waits any more
            self._loop.call_soon_threadsafe(what, *arguments)


class _Reader(_Threaded):
    """What a descriptor has, some of it read ahead."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD // PIECE)
        self._stopped = False
        super().__init__(self._work)

    async def next(self) -> bytes:
        """The next of it, empty at its end; raises `OSError`."""
        piece = await self._pieces.get()
        if isinstance(piece, OSError):
            raise piece
        self._room.release()
        return piece

    def stop(self) -> None:
        """Read no more, but for what is being waited for."""
        self._stopped = True
        self._room.release()

    def _work(self) -> None:
        piece: bytes | OSError = b"nothing yet"
        while piece and not isinstance(piece, OSError):
            self._room.acquire()
            if self._stopped:
                return
            try:
                piece = os.read(self._source, PIECE)
            except OSError as error:
                piece = error
            self._tell(self._pieces.put_nowait, piece)


class _Writer(_Threaded):
    """What goes to a descriptor, some of it taken ahead."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stopped = False
        self._ahead = 0
        self._room = asyncio.Event()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when everything is written and the descriptor is closed, or with an `OSError`."""
        super().__init__(self._work)

    async def put(self, piece: bytes) -> None:
        """Write it soon; returns when there is room for more."""
        self._ahead += len(piece)
        self._pieces.put(piece)
        while self._ahead > AHEAD and not self.finished.done():
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """Nothing follows."""
        self._pieces.put(None)

    def stop(self) -> None:
        """Nothing more has to be written."""
        self._stopped = True
        self._pieces.put(None)

    def _work(self) -> None:
        try:
            while (piece := self._pieces.get()) is not None and not self._stopped:
                _write(self._target, piece)
                self._tell(self._written, len(piece))
            if not self._stopped:
                _close(self._target)
        except OSError as error:
            self._tell(self._finish, error)
        else:
            self._tell(self._finish, None)

    def _written(self, length: int) -> None:
        self._ahead -= length
        self._room.set()

    def _finish(self, error: OSError | None) -> None:
        self._room.set()
        if self.finished.done():
            return  # cancelled meanwhile
        if error:
            self.finished.set_exception(error)
        else:
            self.finished.set_result(None)


def _close(target: int) -> None:
    """Whoever reads the other end of a pipe sees the end now, while our own direction may go on. The number
    stays in use, as the interpreter flushes its stdout at exit."""
    _shut_down(target)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, target)
    os.close(nothing)


def _shut_down(target: int) -> None:
    """End a socket's sending half: it may be stdin as well, which keeps it open when stdout is closed."""
    copy = os.dup(target)
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # a pipe, a file or a terminal
        os.close(copy)
        return
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def _write(target: int, message: bytes) -> None:
    rest = memoryview(message)
    while rest:
        rest = rest[os.write(target, rest) :]
