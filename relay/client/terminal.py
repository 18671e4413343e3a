"""What the client shows to a person, and asks them."""

import asyncio
import os
import select
import sys
from typing import Any, Final

from tqdm import tqdm

from relay.client.files import printable

TERMINAL: Final = "/dev/tty"


class Words:
    """Has the words of a connection compared by a person: once for each key, however often it connects."""

    def __init__(self) -> None:
        self._confirmed: set[str] = set()

    async def __call__(self, words: str, peer: str) -> bool:
        """Whether the person says that the other side shows the same; `peer` is the key's fingerprint.

        A key that was confirmed before needs no answer; the words are shown all the same, as the other side
        may be a new process that asks its person. Raises `OSError` where there is no terminal to ask at.
        """
        # On the terminal itself: stdin and stdout may carry data.
        try:
            import termios  # not on Windows, which has no such terminal either

            terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY)
        except (ImportError, OSError) as error:
            raise OSError(f"there is no terminal to show words at and to ask: {error}") from None
        try:
            if peer in self._confirmed:
                _show(terminal, f"The words are now  {words}  with the same key.\n")
                return True
            termios.tcflush(terminal, termios.TCIFLUSH)  # what was typed before is no answer to this
            _show(terminal, f"Does the peer show the same words?  {words}  [y/N] ")
            try:
                answer = await _typed(terminal)
            except asyncio.CancelledError:
                _show(terminal, "(never mind)\n")
                raise
        finally:
            os.close(terminal)
        if answer.strip().lower() not in (b"y", b"yes"):
            return False
        self._confirmed.add(peer)
        return True


def _show(terminal: int, text: str) -> None:
    os.write(terminal, text.encode())


async def _typed(terminal: int) -> bytes:
    """The line that a person types; once this is cancelled, nothing of it is taken.

    In a thread, as not every system's event loop can watch a terminal.
    """
    stopped, stop = os.pipe()

    def take() -> bytes:
        ready, _, _ = select.select([terminal, stopped], [], [])
        return b"" if stopped in ready else os.read(terminal, 1024)  # a line at a time, by termios(3)

    taking = asyncio.ensure_future(asyncio.to_thread(take))
    try:
        return await asyncio.shield(taking)
    finally:
        os.close(stop)  # by which the other end of the pipe has something to read: its end
        await asyncio.wait([taking])
        os.close(stopped)


def say(text: str) -> None:
    """What the person at the other end says, above the bar where there is one."""
    tqdm.write(f"peer: {printable(text, 10_000)}", file=sys.stderr)


class Bar:
    """Progress on stderr, where that is a terminal: rate and time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def show(self, name: str, done: int, size: int) -> None:
        """The state of a file, in bytes."""
        if name != self._name or self._bar is None:
            self._close()
            self._name = name
            # `disable=None` is off where stderr is no terminal.
            self._bar = tqdm(
                total=size, initial=done, desc=name, unit="B", unit_scale=True, file=sys.stderr, disable=None
            )
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
