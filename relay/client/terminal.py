"""What the client shows to a person, and asks them."""

import sys
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from relay.client.files import printable

TERMINAL: Final = Path("/dev/tty")


class Words:
    """Has the words of a connection compared by a person: once for each key, however often it connects."""

    def __init__(self) -> None:
        self._confirmed: set[str] = set()

    def __call__(self, words: str, peer: str) -> bool:
        """Whether the person says that the other side shows the same; `peer` is the key's fingerprint.

        A key that was confirmed before needs no answer; the words are shown all the same, as the other side
        may be a new process that asks its person.
        """
        # On the terminal itself: stdin and stdout may carry data. Twice, as it can't be opened for both.
        with TERMINAL.open("w") as screen, TERMINAL.open() as keyboard:
            if peer in self._confirmed:
                print(f"The words are now  {words}  with the same key.", file=screen)
                return True
            print(f"Does the peer show the same words?  {words}  [y/N] ", end="", file=screen, flush=True)
            if keyboard.readline().strip().lower() not in ("y", "yes"):
                return False
        self._confirmed.add(peer)
        return True


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
