"""A sign of life now and then, as the relay ends sessions in which nothing passes for too long."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

SECONDS: Final = 15.0
"""Between two signs of life: half of the shortest time that relays and balancers commonly leave the idle."""


@contextlib.asynccontextmanager
async def awake(sign: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Meanwhile `sign` is called every `SECONDS`: it says to the peer what means nothing to it.

    What goes wrong with it is left to those who have something to say. One that is under way is finished
    when the block is left, as a connection is of no more use when a send is cancelled; unless by an error.
    """
    left = asyncio.Event()

    async def give() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await left.wait()
                return
            await sign()

    giving = asyncio.create_task(give())
    try:
        yield
    except BaseException:
        giving.cancel()
        raise
    finally:
        left.set()
        await asyncio.gather(giving, return_exceptions=True)
