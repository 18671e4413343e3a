"""How a command of the client ends: its exit code and its one line, and when it goes on after a drop."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn

import click

from relay.client.connection import Closed
from relay.client.files import TransferBroken, TransferRefused, printable
from relay.client.noise import NoiseError
from relay.client.peers import KeyFileError, PeerRefused
from relay.client.streams import StreamError
from relay.client.wire import WireError

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
"""

DROPPED: Final = frozenset({1006, 1012, 1013, 4410, 4411, 4413, 4415})
"""Close codes after which a file transfer is taken up again."""


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or exit with one clear line and the code that tells what it was."""
    try:
        asyncio.run(work())
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


def fail(code: int, error: object) -> NoReturn:
    """Exit with one line on stderr."""
    click.echo(f"lem-relay: {printable(error)}", err=True)
    sys.exit(code)


async def again(work: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
    """`work` again where the session dropped under it: what is there already does not go over twice."""
    loop = asyncio.get_running_loop()
    dropped = None
    while True:
        try:
            return await work()
        except Closed as error:
            # Our own half-dead leg may hold its place for a while.
            held = error.code == 4409 and dropped is not None and loop.time() - dropped < seconds
            if not seconds or not (error.code in DROPPED or held):
                raise
            dropped = dropped if held else loop.time()
            logging.getLogger(__name__).warning("%s; going on from there", error)
            await asyncio.sleep(0.5)
