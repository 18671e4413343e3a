"""A WebSocket client that may break every rule: bytes on a TCP connection (RFC 6455 sections 4.1 and 5.2)."""

import asyncio
import os
import struct
from typing import Any, Self

from tests.tokens import token


class RawClient:
    """One leg whose frames are made by hand."""

    def __init__(self, relay: Any, session_id: str, jwt: str | None = None) -> None:
        self._relay = relay
        self._request = self.request(relay, session_id, jwt)

    @staticmethod
    def request(relay: Any, session_id: str, jwt: str | None = None) -> bytes:
        """The bytes of an upgrade request."""
        return (
            # Without the port: of a cluster, asking for it would be this leg's turn.
            f"GET /relay/{session_id} HTTP/1.1\r\nHost: {relay.host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Authorization: Bearer {jwt or token()}\r\n\r\n"
        ).encode()

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(self._relay.host, self._relay.port)
        self.writer.write(self._request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.transport.abort()

    async def raw(self, data: bytes) -> None:
        """Send these very bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def frame(self, opcode: int, payload: bytes, *, fin: bool = True) -> None:
        """Send one frame, masked."""
        mask = os.urandom(4)
        size = len(payload)
        head = bytes([fin << 7 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += struct.pack("!BH", 0x80 | 126, size)
        else:
            head += struct.pack("!BQ", 0x80 | 127, size)
        await self.raw(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))

    async def next_frame(self, seconds: float = 20.0) -> tuple[int, bytes]:
        """The next frame of the server within `seconds`, as opcode (without FIN) and payload."""
        async with asyncio.timeout(seconds):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def close_frame(self) -> tuple[int, str]:
        """Code and reason of the close frame that the server sends; data frames before it are skipped."""
        while True:
            opcode, payload = await self.next_frame()
            if opcode == 0x8:
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()
