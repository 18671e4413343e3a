"""A client at full speed, in a thread of its own: it sends without pause, and checks each byte it gets."""

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

from relay.rules.frames import BINARY, CLOSE
from tests.behaviour.raw import RawClient
from tests.ends.streams import Form, Stream, closing, head, masked

DEADLINE = 30.0
"""Seconds after which a round has failed; never how long one takes."""

PIECE = 256 * 1024

AHEAD = 20_000
"""Messages that a client may be ahead of its peer. The kernels' buffers hold so many of the smallest ones
that those would take minutes to cross two nodes, and the end comes behind them."""

HELLO = b"hello"
"""The first message each way, outside of the stream: when it is there, both legs are on their final path."""


@dataclass(slots=True)
class Got:
    """What a client received, in the end."""

    frames: int = 0
    """Whole messages, the greeting included."""
    nbytes: int = 0
    half: bool = False
    """TCP ended inside a frame."""
    code: int | None = None
    """Of the close frame; None without one."""
    wrong: str = ""
    """What no receiver may ever see; empty if there was nothing of the kind."""


class Client:
    """One leg. `receives` is the stream of its peer in the form in which it has to arrive."""

    def __init__(self, relay: Any, session_id: str, jwt: str, sends: Stream, receives: Form) -> None:
        self.sends = sends.sent
        self.receives = receives
        self.peer: Client
        self.receives_last = b""
        """A frame that its peer may begin after its stream, as it arrives; it's never ended."""
        self.got = Got()
        self.pushing = threading.Event()
        """Whether it sends."""
        self.reading = threading.Event()
        """Whether it reads."""
        self.reading.set()
        self.last_words: bytes | None = None
        """What it sends after the frame that it's in, and then nothing more; set by `say_last`."""
        self.told = threading.Event()
        """It was sent a close frame, or the connection ended."""
        self._whole_messages = False
        self._position = 0  # in its own stream
        self._arrived = 0  # of the peer's
        self._tail = b""  # from the first byte on that isn't the peer's stream
        self._dropped = False
        self._answered = False
        self._socket = self._connect(relay, session_id, jwt)
        self._socket.sendall(masked(BINARY, HELLO))
        self._thread = threading.Thread(target=self._run, daemon=True)

    @staticmethod
    def _connect(relay: Any, session_id: str, jwt: str) -> socket.socket:
        raw = socket.create_connection((relay.host, relay.port), timeout=DEADLINE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context: ssl.SSLContext | None = getattr(relay, "ssl", None)
        connection = context.wrap_socket(raw, server_hostname="127.0.0.1") if context else raw
        connection.sendall(RawClient.request(relay, session_id, jwt))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += connection.recv(1) or b"\r\n\r\n"
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return connection

    def meet(self) -> None:
        """Read the peer's greeting, then begin."""
        expected = head(BINARY, len(HELLO)) + HELLO
        received = b""
        while len(received) < len(expected):
            data = self._socket.recv(len(expected) - len(received))
            assert data, "it ended before it began"
            received += data
        assert received == expected, received
        self._socket.setblocking(False)

    def start(self) -> None:
        """Send, if it's to, and read."""
        self._thread.start()

    def say_last(self, words: bytes, *, after_message: bool = False) -> None:
        """End the frame or the message that it's in, send `words` and nothing more."""
        self._whole_messages = after_message
        self.last_words = words

    def drop(self) -> None:
        """Cut the connection wherever it is, as a phone does that loses its network."""
        self._dropped = True
        self._thread.join()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def leave(self) -> None:
        """Close a connection that was never started, once the relay has answered."""
        self._socket.close()

    def finish(self) -> Got:
        """Wait for the end of the connection; gives what came."""
        self._thread.join()
        self._socket.close()
        if not self.got.wrong:
            self._judge()
        return self.got

    # In its thread

    def _run(self) -> None:
        deadline = time.monotonic() + DEADLINE
        try:
            while not self._dropped:
                if time.monotonic() > deadline:
                    self.got.wrong = f"{DEADLINE:g} s, and it has not ended"
                    return
                wants = [self._socket] if self.reading.is_set() else []
                writes = [self._socket] if self._has_something_to_say() else []
                pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
                readable, writable, _ = select.select(wants, writes, [], 0 if pending and wants else 0.02)
                if writable:
                    self._write()
                if (readable or (pending and wants)) and not self._read():
                    return
        except OSError:
            pass  # a reset: it ends here, with whatever has come
        finally:
            self.told.set()

    def _has_something_to_say(self) -> bool:
        if self._answered:
            return False
        return self.last_words is not None or (self.pushing.is_set() and not self._is_far_ahead())

    def _is_far_ahead(self) -> bool:
        sent, _ = self.sends.messages(self._position)
        arrived, _ = self.peer.receives.messages(self.peer._arrived)
        return sent - arrived > AHEAD

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            words = self.last_words
            if words is None:
                self._position += self._socket.send(self.sends.piece(self._position, PIECE))
                return
            ends = self.sends.message_ends if self._whole_messages else self.sends.ends
            end = self.sends.next_end(self._position, ends)
            if self._position < end:
                self._position += self._socket.send(self.sends.piece(self._position, end - self._position))
            if self._position == end:
                # Small, and the first that is sent of it says whether there was room for all of it.
                sent = self._socket.send(words)
                self.last_words = words[sent:]
                self._answered = not self.last_words

    def _read(self) -> bool:
        try:
            data = self._socket.recv(PIECE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        if not data:
            return False
        if not self._tail:
            data = self._compare(data)
        self._tail += data
        if self._tail[:1] == bytes((0x80 | CLOSE,)) and len(self._tail) >= 4 and not self.told.is_set():
            if self.last_words is None:
                self.say_last(closing(int.from_bytes(self._tail[2:4], "big")))
            self.told.set()
        return True

    def _compare(self, data: bytes) -> bytes:
        """Take what is the peer's stream; gives what isn't."""
        view = memoryview(data)
        while view:
            expected = self.receives.piece(self._arrived, len(view))
            here = view[: len(expected)]
            if here != expected:
                same = next(n for n, (a, b) in enumerate(zip(here, expected, strict=True)) if a != b)
                self._arrived += same
                return bytes(view[same:])
            self._arrived += len(expected)
            view = view[len(expected) :]
        return b""

    def _judge(self) -> None:
        got = self.got
        tail = self._tail
        begun = self.receives.begun(self._arrived)
        if begun + tail and self.receives_last.startswith(begun + tail):
            self._arrived -= len(begun)
            got.half, tail = True, b""
        else:
            got.half = bool(begun)
        frames, nbytes = self.receives.messages(self._arrived)
        got.frames, got.nbytes = frames + 1, nbytes + len(HELLO)
        if not tail:
            return
        if got.half:
            got.wrong = f"inside a frame came {tail[:20]!r}"
        elif tail[0] != 0x80 | CLOSE or len(tail) != 2 + tail[1]:
            got.wrong = f"between two frames came {tail[:20]!r} and {max(0, len(tail) - 20)} bytes more"
        else:
            got.code = int.from_bytes(tail[2:4], "big")
