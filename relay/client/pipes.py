"""Bytes between two file descriptors and the peer, both directions at once, each ending by itself."""

import asyncio
import contextlib
import os
import socket
import threading
from typing import Final

from relay.client.connection import RelayConnection

PIECE: Final = 65_518
"""Bytes read at once: what fits one record."""


async def pipe_through(peer: RelayConnection, source: int, target: int) -> None:
    """Send what `source` has until its end, and write what the peer sends to `target` until its end.

    Returns after both ends; `target` is closed at the peer's. Raises what the connection raises, and
    `OSError` where one of the two can't be used.
    """
    sending = asyncio.create_task(_send(peer, source))
    receiving = asyncio.create_task(_receive(peer, target))
    tasks = {sending, receiving}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _send(peer: RelayConnection, source: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        # Any kind of descriptor can be read in a thread; in one of its own that dies with the process, as a
        # terminal may have nothing to read for ever.
        piece: asyncio.Future[bytes] = loop.create_future()
        threading.Thread(target=_read, args=(source, piece, loop), daemon=True).start()
        if not await piece:
            await peer.end()
            return
        await peer.send(piece.result())


def _read(source: int, piece: asyncio.Future[bytes], loop: asyncio.AbstractEventLoop) -> None:
    try:
        data, error = os.read(source, PIECE), None
    except OSError as failure:
        data, error = b"", failure

    def settle() -> None:
        if piece.done():
            return  # cancelled meanwhile
        if error:
            piece.set_exception(error)
        else:
            piece.set_result(data)

    with contextlib.suppress(RuntimeError):  # the loop closed meanwhile, and nobody waits any more
        loop.call_soon_threadsafe(settle)


async def _receive(peer: RelayConnection, target: int) -> None:
    async for message in peer:
        await asyncio.to_thread(_write, target, message)
    _shut_down(target)
    # Whoever reads the other end of a pipe sees the end now, while our own direction may go on. The number
    # stays in use, as the interpreter flushes its stdout at exit.
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
