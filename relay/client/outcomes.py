"""How a command of the client ends: its exit code and its one line."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

import click

from relay.client.connection import Closed
from relay.client.disk import TransferRefused
from relay.client.files import TransferBroken, printable
from relay.client.noise import NoiseError
from relay.client.peers import KeyFileError, PeerRefused
from relay.client.streams import StreamError
from relay.client.wire import WireError

T = TypeVar("T")

EXIT: Final = {4401: 4, 4403: 4, 4408: 5, 4409: 4, 4429: 4, 4499: 4, 3403: 6}
"""Exit codes by close code; any other close is 5."""

EXITS: Final = """\b
Exit codes:
  0  all went over
  1  a file or the peer's messages were not as they have to be
  2  wrong options
  4  the relay refuses: token, session, quota
  5  the relay can't be reached, the peer did not come, or the connection broke
  6  the peer, or its key, is refused by either side
  128 + n  stopped by signal n: 130 is Ctrl-C (SIGINT), 143 SIGTERM
"""


STOPPING: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a process to stop; ssh sends its ProxyCommand a SIGHUP when it has ended itself."""


class Stopped(Exception):
    """A signal asked this process to stop; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end, or exit with one clear line and the code that tells what it was."""
    try:
        return asyncio.run(_until_stopped(work))
    except Stopped as error:
        sys.exit(128 + error.number)  # as shells have it
    except Closed as error:
        fail(EXIT.get(error.code, 5), error)
    except PeerRefused as error:
        fail(6, error)
    except (NoiseError, StreamError, WireError) as error:
        fail(1, f"{error}: the peer speaks something else, or someone is in between")
    except TimeoutError:
        fail(5, "the peer did not answer in time")
    except (TransferRefused, TransferBroken, KeyFileError, OSError, ValueError) as error:
        fail(1, error)


async def _until_stopped(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `work` gives, or `Stopped` by a signal, which cancels it: so it leaves its session in order."""
    working = asyncio.ensure_future(work())
    numbers: list[int] = []

    def stop(number: int) -> None:
        numbers.append(number)
        working.cancel()

    for number in STOPPING:
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # as a shell has it for what it runs in the background
        with contextlib.suppress(NotImplementedError):  # on Windows, where Python's own handler remains
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await working
    except asyncio.CancelledError:
        if numbers:
            raise Stopped(numbers[0]) from None
        raise


def fail(code: int, error: object) -> NoReturn:
    """Exit with one line on stderr."""
    click.echo(f"lem-relay: {printable(error)}", err=True)
    sys.exit(code)
