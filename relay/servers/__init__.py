"""What a particular ASGI server needs so that the relay keeps its promises on it."""

from collections.abc import Awaitable, Callable

Drain = Callable[[float], Awaitable[None]]

_starts: list[Callable[[], object]] = []
_drains: list[Drain] = []


def on_start(start: Callable[[], object]) -> None:
    """Have `start()` called when the server begins to serve: our own one, or one with a lifespan."""
    _starts.append(start)


def start() -> None:
    """Call all that was registered."""
    for hook in _starts:
        hook()


def on_drain(drain: Drain) -> None:
    """Have `drain(seconds)` awaited when the server is told to stop; it has that many seconds."""
    _drains.append(drain)


async def drain(seconds: float) -> None:
    """Await all that was registered, one after the other."""
    for hook in _drains:
        await hook(seconds)
