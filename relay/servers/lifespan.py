"""ASGI's lifespan: how a server other than ours tells that it begins to serve, and that it stops.

A project mounts `lifespan` under that name in its `ProtocolTypeRouter`. Our Daphne has no lifespan events and
calls the same hooks itself: it's one of the two, never both.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from relay import conf, servers

logger = logging.getLogger(__name__)

Message = dict[str, Any]

MARGIN = 0.9
"""Part of RELAY_DRAIN_SECONDS that the drains are given: the server hears of their end within all of it."""


async def lifespan(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """The ASGI application of the lifespan scope (ASGI's lifespan protocol, version 2.0)."""
    await receive()  # lifespan.startup
    try:
        servers.start()
    except Exception as error:
        logger.exception("the relay can't start")
        await send({"type": "lifespan.startup.failed", "message": f"the relay can't start: {error}"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()  # lifespan.shutdown: by now the server has closed its sockets, or is about to
    seconds = conf.current().drain_seconds
    logger.info("the server stops: draining, %g s at most", seconds)
    try:
        # One that hangs must not keep the server from stopping: not every server has a deadline for this.
        async with asyncio.timeout(seconds):
            await servers.drain(seconds * MARGIN)
    except TimeoutError:
        logger.warning("draining took too long")
    except Exception:
        logger.exception("draining failed")
    await send({"type": "lifespan.shutdown.complete"})
