"""Who is whose peer: the second socket of a path meets the first. All that a bare relay needs to know."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Pairing(Generic[T]):
    """Sockets that wait, by path."""

    def __init__(self) -> None:
        self._waiting: dict[str, T] = {}

    def meet(self, path: str, socket: T) -> T | None:
        """The socket that waits under `path`, or None: then `socket` waits there itself."""
        peer = self._waiting.pop(path, None)
        if peer is None:
            self._waiting[path] = socket
        return peer

    def leave(self, path: str, socket: T) -> None:
        """Forget `socket` if it still waits."""
        if self._waiting.get(path) is socket:
            del self._waiting[path]
