"""A WebSocket client on a bare socket, which may break every rule and read as late as it likes."""

import contextlib
import os
import socket
import ssl
import struct
import time
from typing import Self

from websockets.speedups import apply_mask

from tests.processes import DEADLINE

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = None) -> bytes:
    """A masked frame (RFC 6455 section 5.2)."""
    mask = os.urandom(4) if mask is None else mask
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", fin << 7 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", fin << 7 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", fin << 7 | opcode, 0x80 | 127, size)
    return head + mask + apply_mask(payload, mask)


def request(path: str, *headers: str, port: int = 80) -> bytes:
    """An upgrade request."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Wire:
    """One connection. Everything it waits for has a deadline; `timeout` says what waiting for it ended by."""

    def __init__(
        self, port: int, path: str | None = None, *headers: str, receive_buffer: int = 0, tls: bool = False
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self.buffer = b""
        self.head = b""
        if path is not None:
            self.send(request(path, *headers, port=port))
            self.head = self.response_head()
            assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send these very bytes."""
        self.socket.sendall(data)

    def push(self, data: bytes, patience: float = 0.5) -> int:
        """Send as much of `data` as is taken; gives how much, when nothing was for `patience` seconds, or
        the connection ended."""
        self.socket.settimeout(patience)
        sent = 0
        view = memoryview(data)
        try:
            while sent < len(data):
                sent += self.socket.send(view[sent : sent + 65536])
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self.socket.settimeout(DEADLINE)
        return sent

    def reset(self) -> None:
        """End with a reset, as a host does whose process died with unread data."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def response_head(self) -> bytes:
        """The head of the HTTP response; what follows stays in `buffer`."""
        while b"\r\n\r\n" not in self.buffer:
            if not self._fill():
                return self.buffer
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    def next_frame(self) -> tuple[int, bytes]:
        """First byte and payload of the next frame. Raises `EOFError` at the end of the connection."""
        first, size = self._take(2)
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first, self._take(size)

    def message(self) -> bytes:
        """Payload of the next data frame."""
        while True:
            first, payload = self.next_frame()
            if first & 0x0F < CLOSE:
                return payload
            assert first & 0x0F != CLOSE, payload

    def close_frame(self) -> tuple[int | None, str]:
        """Code and reason of the close frame that comes next but for pings; answers it."""
        while True:
            first, payload = self.next_frame()
            if first & 0x0F == CLOSE:
                break
            assert first & 0x0F == PING, (first, payload[:50])
        with contextlib.suppress(OSError):
            self.send(frame(CLOSE, payload[:2]))
        return (struct.unpack("!H", payload[:2])[0] if payload else None), payload[2:].decode()

    def ends(self, seconds: float = DEADLINE) -> bool:
        """Whether the connection ends within that time, whatever still comes before."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(65536):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
            finally:
                self.socket.settimeout(DEADLINE)
        return False

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes, not even the end, for that time."""
        self.socket.settimeout(seconds)
        try:
            return not self._fill() and False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(DEADLINE)

    def _take(self, size: int) -> bytes:
        parts = [self.buffer]
        have = len(self.buffer)
        while have < size:
            part = self.socket.recv(max(65536, min(size - have, 1 << 20)))
            if not part:
                raise EOFError
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self.buffer = data[size:]
        return data[:size]

    def _fill(self) -> bool:
        part = self.socket.recv(65536)
        self.buffer += part
        return bool(part)
