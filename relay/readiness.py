"""Whether this node should be sent new work: what is asked, and what is answered when a backend hangs."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from channels.layers import get_channel_layer
from django.db import connection

from relay import conf, sessions

# One thread for all that asks the database: a database that hangs holds up this one and no other.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="relay-ready")
_asking: dict[str, asyncio.Future[None]] = {}


async def failing() -> dict[str, str]:
    """What keeps this node from taking new work, by the name of the part; empty when it's ready.

    A backend that doesn't answer within `RELAY_ADMIT_SECONDS` counts as away. However often this is asked,
    a backend that hangs is asked once.
    """
    found = {"node": "draining"} if sessions.of_this_process().draining else {}
    if error := sessions.of_this_process().spool_error:
        found["spool"] = error
    parts = {
        "database": _database,
        "channel layer": _channel_layer,
        "rendezvous": sessions.of_this_process().rendezvous.check,
    }
    answers = await asyncio.gather(*(_ask(name, ask) for name, ask in parts.items()))
    return found | {name: answer for name, answer in zip(parts, answers, strict=True) if answer}


async def _ask(name: str, ask: Callable[[], Awaitable[None]]) -> str:
    """What is wrong with a backend, in a few words without anything secret; empty if nothing is."""
    asking = _asking.get(name)
    if asking is None or asking.done():
        asking = _asking[name] = asyncio.ensure_future(ask())
        # It may fail when nobody waits for it any more, which is no error of its own.
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait((asking,), timeout=conf.current().admit_seconds)
    if not asking.done():
        return "no answer"
    error = asking.exception()
    return type(error).__name__ if error else ""


async def _database() -> None:
    await asyncio.get_running_loop().run_in_executor(_thread, _select)


def _select() -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()  # so that each answer is about connecting, too


async def _channel_layer() -> None:
    # To a group that nobody is in: it reaches the layer's store and no leg.
    await get_channel_layer().group_send("relay.ready", {"type": "relay.ready"})
