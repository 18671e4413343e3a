"""Where a command's data goes: standard output, or a file that appears whole or not at all."""

import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from relay.ledger.exports.drafts import Draft

Write = Callable[[bytes], object]


@contextmanager
def open_output(target: str, stdout: TextIO) -> Iterator[Write]:
    """What takes the bytes for the file `target`, or for `-` those for standard output (`stdout`).

    The file gets its name only when the block ends well: it is written beside it, forced to disk and renamed.
    A file that is there keeps its mode, a link stays a link, and what is no regular file (a pipe, a device)
    is written to directly. Raises `OSError`.
    """
    if target == "-":
        with _standard_output(stdout) as write:
            yield write
        return
    path = Path(target)
    old_mode = path.stat().st_mode if path.exists() else None
    if old_mode is not None and not stat.S_ISREG(old_mode):
        with path.open("wb") as file:
            yield file.write
        return
    with Draft(path.resolve(), secrets.token_hex(4)) as draft:
        yield draft.write
        draft.settle(None if old_mode is None else stat.S_IMODE(old_mode))
        draft.publish(replace=True)


@contextmanager
def _standard_output(stdout: TextIO) -> Iterator[Write]:
    buffer = getattr(stdout, "buffer", None)
    if buffer is None:  # a test's or a caller's own
        yield lambda chunk: stdout.write(chunk.decode())
        return
    stdout.flush()
    try:
        yield buffer.write
        buffer.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
