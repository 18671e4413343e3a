"""Going on after a session dropped under the peers: they meet again under the same session id."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

from relay.client.connection import Closed, RelayConnection
from relay.client.patience import Patience

log = logging.getLogger(__name__)

DROPPED: Final = frozenset({1006, 1012, 1013, 4410, 4411, 4413, 4415})
"""Close codes by which a connection dropped, on either side, so that both may meet again at once."""
TIMED_OUT: Final = frozenset({4408, 4412, 4414})
"""Close codes by which the relay's patience ended: for what serves for as long as it is left running."""
LEFT: Final = frozenset({1000, 1001, 1005})
"""Close codes of a peer that left, be it in the middle."""
HELD: Final = 4409
"""Both places are taken; after a drop by our own old leg, maybe, which the relay has not missed yet."""

T = TypeVar("T")


async def reconnecting(
    connect: Callable[[], RelayConnection],
    work: Callable[[RelayConnection], Awaitable[T]],
    *,
    seconds: float = 60.0,
    codes: Collection[int] = DROPPED,
) -> T:
    """What `work` gives for a connection; it is called anew, with a new one, each time its session drops.

        await reconnecting(lambda: RelayConnection(url, "hello", token, key=key, rule=rule), work)

    What was under way when a session dropped may or may not have come over, and only what passed between the
    applications can tell; so they begin again by saying what they have, as `relay.client.files` does.

    seconds: how long to go on while sessions drop one after the other; 0 is one session only.
    codes: those of `Closed` after which to go on.

    Raises what entering a connection and `work` raise: `Closed` where its code is none of `codes`, or when
    `seconds` are over.
    """
    now = asyncio.get_running_loop().time
    patience = Patience(seconds)
    while True:
        try:
            async with connect() as peer:
                return await work(peer)
        except Closed as error:
            if error.code not in codes and (error.code != HELD or patience.untried):
                raise
            if (pause := patience.failed(now(), error.held)) is None:
                raise
            log.warning("%s; going on from there", error)
        await asyncio.sleep(pause)
