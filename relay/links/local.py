"""The link between two legs of one process, on any ASGI server: each message is sent to the peer's socket.

No task, no queue and no channel layer: the sender's loop awaits the peer's `send`, which waits while the
peer's socket has no room, so a slow reader slows its sender and nothing grows.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from relay.links import MessageTooBig, Meter

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


class LocalLink:
    """One direction: messages of one leg to the socket of its peer.

    `send` is the peer's ASGI send, `clock` gives the seconds that `Meter.active_at` counts in. `sending`
    is true while a message waits for room at the peer.
    """

    __slots__ = ("_clock", "_max_message_bytes", "_send", "meter", "sending")

    def __init__(self, send: Send, meter: Meter, clock: Callable[[], float], max_message_bytes: int) -> None:
        self._send = send
        self._clock = clock
        self._max_message_bytes = max_message_bytes
        self.meter = meter
        self.sending = False

    async def forward(self, message: Message) -> None:
        """Send on one `websocket.receive` message; returns when the peer's socket has taken it.

        Raises `MessageTooBig` before anything is sent, and `OSError` if the peer's socket is gone.
        """
        data = message.get("bytes")
        if data is not None:
            size = len(data)
            onward: Message = {"type": "websocket.send", "bytes": data}
        else:
            text = message["text"]
            size = text_bytes(text)
            onward = {"type": "websocket.send", "text": text}
        if size > self._max_message_bytes:
            raise MessageTooBig(size)
        self.sending = True
        await self._send(onward)
        self.sending = False
        meter = self.meter
        meter.frames += 1
        meter.nbytes += size
        meter.active_at = self._clock()


def text_bytes(text: str) -> int:
    """How many bytes of payload `text` is: its length in UTF-8 (RFC 6455 section 5.6)."""
    return len(text) if text.isascii() else len(text.encode())


def payload_bytes(message: Message) -> int:
    """How many bytes of payload a `websocket.receive` message carries."""
    data = message.get("bytes")
    return len(data) if data is not None else text_bytes(message["text"])
