"""An operator closes sessions: an event to each one's group, wherever its legs are."""

import asyncio
import time
from collections.abc import Sequence
from uuid import UUID

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

from relay import conf, sessions
from relay.models import RelaySession
from relay.rules.closing import CloseReason

SEEN_SECONDS = 2.0
"""How long to wait for the records of closed sessions to show it: many times what it usually takes."""


class NotReached(Exception):
    """The channel layer failed; `told` are the sessions that were told before it did."""

    def __init__(self, told: Sequence[UUID], cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.told = told


def close(uuids: Sequence[UUID]) -> None:
    """Have these sessions end as `closed_by_operator`. Raises `NotReached`.

    Called from a request's thread, this runs on the event loop that serves it: the channel layer of a single
    process is in memory, and its legs wait on that loop.
    """
    async_to_sync(_close)(uuids)


async def _close(uuids: Sequence[UUID]) -> None:
    layer = get_channel_layer()
    event = {"type": sessions.CLOSE_EVENT, "reason": str(CloseReason.CLOSED_BY_OPERATOR)}
    told: list[UUID] = []
    try:
        for uuid in uuids:
            async with asyncio.timeout(conf.current().admit_seconds):
                await layer.group_send(sessions.group_name(uuid), event)
            told.append(uuid)
    except Exception as error:  # a layer raises what its client library raises
        raise NotReached(told, error) from error


def still_live(uuids: Sequence[UUID]) -> int:
    """How many of these are not recorded as ended, after some time to be."""
    deadline = time.monotonic() + SEEN_SECONDS
    live = RelaySession.objects.filter(pk__in=uuids, timestamp__isnull=True)
    while (left := live.count()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
