"""Where a command's data goes: standard output, or a file that appears whole or not at all."""

import io
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def open_output(target: str, stdout: TextIO) -> Iterator[TextIO]:
    """A UTF-8 stream to the file `target`, or for `-` to standard output (`stdout`, when that was replaced).

    The file gets its name only when the block ends well: it is written beside it, forced to disk and renamed.
    A file that is there keeps its mode, a link stays a link, and what is no regular file (a pipe, a device)
    is written to directly. Raises `OSError`.
    """
    if target == "-":
        with _standard_output(stdout) as stream:
            yield stream
        return
    path = Path(target)
    old_mode = path.stat().st_mode if path.exists() else None
    if old_mode is not None and not stat.S_ISREG(old_mode):
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        return
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with draft.open("x", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            if old_mode is not None:
                os.fchmod(stream.fileno(), stat.S_IMODE(old_mode))
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _force_name_to_disk(path.parent)


@contextmanager
def _standard_output(stdout: TextIO) -> Iterator[TextIO]:
    buffer = getattr(stdout, "buffer", None)
    if buffer is None:  # a test's or a caller's own
        yield stdout
        return
    stdout.flush()
    # The same bytes whatever the locale and the platform.
    stream = io.TextIOWrapper(buffer, encoding="utf-8", newline="")
    try:
        yield stream
        stream.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    finally:
        stream.detach()


def _force_name_to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
