"""What a busy client sends, in two forms: as it sends it, and as its peer gets it."""

import random
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from relay.rules.frames import BINARY, CLOSE, CONTINUATION
from tests.frames_oracle import xor

BLOCK_BYTES = 3 * 1024 * 1024
"""After so many bytes a stream repeats itself: more than any piece that could get lost by mistake."""


def head(opcode: int, size: int, *, fin: bool = True, mask: bytes = b"") -> bytes:
    """The header of a frame, with `mask` as a client has it (RFC 6455 section 5.2)."""
    bit = 0x80 if mask else 0
    first = opcode | (0x80 if fin else 0)
    if size < 126:
        return bytes((first, bit | size)) + mask
    if size < 65_536:
        return bytes((first, bit | 126)) + size.to_bytes(2, "big") + mask
    return bytes((first, bit | 127)) + size.to_bytes(8, "big") + mask


def masked(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\x5a\x01\xf3\x7c") -> bytes:
    """One frame of a client."""
    return head(opcode, len(payload), fin=fin, mask=mask) + xor(payload, mask)


def closing(code: int, reason: str = "") -> bytes:
    """A client's close frame."""
    return masked(CLOSE, code.to_bytes(2, "big") + reason.encode())


@dataclass(frozen=True, slots=True)
class Form:
    """A stream in one of its forms: one block of it, which repeats without end."""

    block: bytes
    ends: list[int]
    """Where its frames end."""
    message_ends: list[int]
    """Where its messages end."""
    payloads: list[int]
    """The payload bytes of its messages, added up."""

    def piece(self, start: int, size: int) -> memoryview:
        """At most `size` bytes from `start` on."""
        at = start % len(self.block)
        return memoryview(self.block)[at : at + size]

    def next_end(self, position: int, ends: list[int]) -> int:
        """The first of its `ends` that is not before `position`."""
        blocks, at = divmod(position, len(self.block))
        if at == 0:
            return position
        return blocks * len(self.block) + ends[bisect_left(ends, at)]

    def begun(self, position: int) -> bytes:
        """What is there before `position` of a frame that ends behind it."""
        at = position % len(self.block)
        number = bisect_right(self.ends, at)
        return self.block[self.ends[number - 1] if number else 0 : at]

    def messages(self, position: int) -> tuple[int, int]:
        """How many messages end up to `position`, and their bytes of payload."""
        blocks, at = divmod(position, len(self.block))
        count = bisect_right(self.message_ends, at)
        return (
            blocks * len(self.message_ends) + count,
            blocks * self.payloads[-1] + (self.payloads[count - 1] if count else 0),
        )


@dataclass(frozen=True, slots=True)
class Stream:
    """What one side sends, and how it arrives: frame by frame, or message by message."""

    sent: Form
    as_frames: Form
    as_messages: Form


@cache
def stream(size: int, fragments: int, seed: int) -> Stream:
    """Messages of about `size` bytes, each in so many frames."""
    draw = random.Random(f"{size} {fragments} {seed}")
    sent: list[bytes] = []
    frames: list[bytes] = []
    whole: list[bytes] = []
    frame_ends_message: list[bool] = []
    payloads: list[int] = []
    length = 0
    while length < BLOCK_BYTES and len(sent) < 60_000:
        payload = draw.randbytes(max(1, size - draw.randrange(1 + size // 16)))
        whole.append(head(BINARY, len(payload)) + payload)
        payloads.append(len(payload))
        step = -(-len(payload) // fragments)
        for at in range(0, len(payload), step):
            opcode, fin = CONTINUATION if at else BINARY, at + step >= len(payload)
            part = payload[at : at + step]
            frames.append(head(opcode, len(part), fin=fin) + part)
            sent.append(masked(opcode, part, fin=fin, mask=draw.randbytes(4)))
            frame_ends_message.append(fin)
            length += len(part)
    sums = list(accumulate(payloads))

    def form(pieces: list[bytes], ends_message: list[bool]) -> Form:
        ends = list(accumulate(map(len, pieces)))
        message_ends = [end for end, last in zip(ends, ends_message, strict=True) if last]
        return Form(b"".join(pieces), ends, message_ends, sums)

    return Stream(
        form(sent, frame_ends_message), form(frames, frame_ends_message), form(whole, [True] * len(whole))
    )
