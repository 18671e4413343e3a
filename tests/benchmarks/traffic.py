"""The frames to send, encoded beforehand so that the generator's own cost is one write for many frames.

Payloads are random, hence incompressible. A trace is a cycle: frame number i carries payload i modulo its
length, so that the receiver can check any frame against what it must be.
"""

import os
import random
from dataclasses import dataclass
from itertools import accumulate

from .plan import KIB, MIB


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole frames for one write."""

    wire: bytes
    frames: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A cycle of payloads, with the same frames as batches masked (client) and unmasked (server)."""

    payloads: list[bytes]
    masked: list[Batch]
    plain: list[Batch]
    starts: list[int]
    """Payload bytes before frame i of the cycle, with the sum of the whole cycle at the end."""

    def bytes_of(self, frames: int) -> int:
        """Payload bytes of the first `frames` frames of the endless cycle."""
        cycles, rest = divmod(frames, len(self.payloads))
        return cycles * self.starts[-1] + self.starts[rest]


def encode(payload: bytes, mask: bytes | None) -> bytes:
    """One binary frame with FIN set (RFC 6455 section 5.2), masked where `mask` (4 bytes) is given."""
    size, masked = len(payload), 0x80 if mask else 0
    if size < 126:
        header = bytes((0x82, masked | size))
    elif size < 65536:
        header = bytes((0x82, masked | 126)) + size.to_bytes(2, "big")
    else:
        header = bytes((0x82, masked | 127)) + size.to_bytes(8, "big")
    if not mask:
        return header + payload
    key = (mask * (size // 4 + 1))[:size]
    body = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return header + mask + body.to_bytes(size, "little")


def make_trace(sizes: list[int], batch_bytes: int, batch_frames: int = 1_000_000) -> Trace:
    """A trace of frames of these payload sizes, in batches of about `batch_bytes`, `batch_frames` at most."""
    payloads = [os.urandom(size) for size in sizes]
    groups: list[list[bytes]] = []
    room = 0
    for payload in payloads:
        if not groups or room < len(payload) or len(groups[-1]) >= batch_frames:
            groups.append([])
            room = batch_bytes
        groups[-1].append(payload)
        room -= len(payload)
    masked, plain = (
        [
            Batch(b"".join(encode(p, mask()) for p in group), len(group), sum(map(len, group)))
            for group in groups
        ]
        for mask in (lambda: os.urandom(4), lambda: None)
    )
    return Trace(payloads, masked, plain, list(accumulate(sizes, initial=0)))


def realistic_sizes(frames: int = 2000) -> list[int]:
    """The sizes of a device's chatter with a file now and then: 100 to 1200 B, with bursts of 8 x 16 KiB.

    Always the same sequence, so that runs can be compared.
    """
    chance = random.Random(7)
    sizes: list[int] = []
    while len(sizes) < frames:
        sizes += [chance.randint(100, 1200) for _ in range(chance.randint(80, 160))]
        sizes += [16 * KIB] * 8
    return sizes


def trace_for(workload: str, window_frames: int) -> tuple[Trace, int]:
    """The trace of a streaming workload and its window: payload bytes that may be on the way."""
    few = max(1, window_frames // 2)
    if workload == "small":
        return make_trace([128] * 2048, 64 * KIB, few), 256 * KIB
    # Across nodes the window is wide: the relay's own back-pressure is what limits it.
    if workload == "nodes-small":
        return make_trace([128] * 8192, 64 * KIB, few), 2 * MIB
    if workload == "nodes-large":
        return make_trace([64 * KIB] * 128, 64 * KIB), 16 * MIB
    if workload == "pairs":
        return make_trace([128] * 512, 2 * KIB, few), 8 * KIB
    if workload == "large":
        return make_trace([64 * KIB] * 16, 64 * KIB), 2 * MIB
    if workload == "huge":
        return make_trace([MIB] * 4, MIB), 8 * MIB
    if workload == "mixed":
        return make_trace(realistic_sizes(), 32 * KIB, few), 256 * KIB
    raise ValueError(workload)
