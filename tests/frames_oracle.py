"""What `websockets` makes of a client's bytes, and how `relay.rules.frames` may differ from it.

The oracle is the sans-I/O `ServerProtocol` in state OPEN. The forwarder differs from it in these ways only:

- It refuses with 1002 lengths that aren't in their shortest form and 64-bit lengths with the top bit set
  (RFC 6455 section 5.2); the oracle accepts the first and calls the second too big.
- It refuses a frame as soon as its header is wrong; the oracle waits for the payload, and so reports
  "too big" (1009) first where both apply.
- It validates text as it comes (RFC 6455 section 8.1); in the oracle that is the job of a layer above.
- It takes a close frame within a fragmented message (RFC 6455 section 5.5 lets control frames come there);
  the oracle answers 1002.
- Of a close frame with a bad code and a bad reason it names the code (1002), the oracle the reason (1007).
- It holds control frames to 125 bytes and nothing else. The oracle holds them to what is left of the message
  limit too, so it is told that limit for data frames only.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol

from relay.rules.frames import CLOSE, Control, Failure, Forwarder


class Sliced(NamedTuple):
    """A frame as its length field cuts it out of a stream, without any rule applied. Maybe incomplete."""

    raw: bytes
    fin: bool
    opcode: int
    first: int
    length: int
    encoded_length: bytes
    payload: bytes
    complete: bool


def slice_frames(stream: bytes) -> Iterator[Sliced]:
    """Cut a stream of frames, masked or not, at their lengths; the last may be incomplete."""
    pos = 0
    while pos < len(stream):
        head = stream[pos : pos + 14]
        second = head[1] if len(head) > 1 else 0
        extended = {126: 2, 127: 8}.get(second & 0x7F, 0)
        encoded = head[2 : 2 + extended]
        length = int.from_bytes(encoded, "big") if extended else second & 0x7F
        start = 2 + extended + (4 if second & 0x80 else 0)
        raw = stream[pos : pos + start + length]
        mask = head[start - 4 : start] if second & 0x80 else bytes(4)
        payload = xor(raw[start:], mask)
        complete = len(head) > 1 and len(raw) == start + length
        yield Sliced(raw, head[0] >= 0x80, head[0] & 0x0F, head[0], length, encoded, payload, complete)
        pos += len(raw)


def xor(data: bytes, mask: bytes) -> bytes:
    """RFC 6455 section 5.3 in another way than the code under test."""
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")


@dataclass
class Outcome:
    """Everything a forwarder gave for a stream."""

    written: bytes = b""
    controls: list[Control] = field(default_factory=list)
    failure: Failure | None = None
    messages: int = 0
    payload_bytes: int = 0


def forward(forwarder: Forwarder, chunks: Iterable[bytes]) -> Outcome:
    """Feed all chunks; what one chunk gives is checked for what holds always."""
    outcome = Outcome()
    for chunk in chunks:
        ended = forwarder.ended
        result = forwarder.feed(chunk)
        assert not (ended and any(result)), "something came after the end"
        assert b"" not in result.writes
        outcome.written += b"".join(result.writes)
        outcome.controls += result.controls
        outcome.failure = outcome.failure or result.failure
        outcome.messages += result.messages
        outcome.payload_bytes += result.payload_bytes
        assert len(forwarder._head) <= 14
        assert len(forwarder._control) <= 125
        assert len(forwarder._sequence) < 4
        assert forwarder.ended == bool(outcome.failure or [c for c in outcome.controls if c.opcode == CLOSE])
    return outcome


def ask_oracle(stream: bytes, limit: int) -> tuple[list[Frame], int | None]:
    """The frames `websockets` finds in `stream`, and the close code if it refuses what follows them."""
    protocol = ServerProtocol(state=State.OPEN, max_size=limit)
    for frame in slice_frames(stream):
        protocol.max_message_size = limit if frame.opcode < CLOSE else None
        protocol.receive_data(frame.raw)
    frames = [event for event in protocol.events_received() if isinstance(event, Frame)]
    code = protocol.close_sent.code if protocol.parser_exc and protocol.close_sent else None
    return frames, code


def unmasked(frame: Sliced | Frame) -> bytes:
    """A frame as a server sends it."""
    opcode, payload = (
        (frame.opcode, frame.payload) if isinstance(frame, Sliced) else (frame.opcode, frame.data)
    )
    return Frame(opcode, payload, frame.fin).serialize(mask=False)  # type: ignore[arg-type]


def compare(stream: bytes, chunks: Iterable[bytes], limit: int) -> Outcome:
    """Assert that a forwarder fed with `chunks` agrees with the oracle about `stream`, as said above."""
    forwarder = Forwarder(limit)
    outcome = forward(forwarder, chunks)
    theirs, their_code = ask_oracle(stream, limit)
    sliced = list(slice_frames(stream))

    *whole, tail = [*slice_frames(outcome.written), None]
    if whole and not whole[-1].complete:
        tail = whole.pop()
    assert forwarder.left_out == (tail.length - len(tail.payload) if tail else 0)
    assert tail is None or tail.encoded_length or tail.length < 126
    last_end = max((number for number, frame in enumerate(whole, start=1) if frame.fin), default=0)
    partial = [*whole[last_end:], *([tail] if tail else [])]
    assert forwarder.partial_bytes == sum(len(frame.payload) for frame in partial)
    done = len(whole) + len(outcome.controls)  # frames that were taken in whole
    assert outcome.messages == sum(frame.fin for frame in whole)
    assert outcome.payload_bytes == sum(len(frame.payload) for frame in [*whole, *([tail] if tail else [])])

    # What was taken is what the oracle found.
    taken = theirs[:done]
    if len(taken) < done:  # a close that the oracle refuses, see above
        assert done == len(taken) + 1
        assert their_code == 1002
        assert outcome.controls[-1].opcode == CLOSE
        assert open_message(sliced[: done - 1])
        expected_controls = outcome.controls[:-1]
        assert sliced[done - 1].payload == outcome.controls[-1].payload
    else:
        expected_controls = outcome.controls
    assert b"".join(unmasked(frame) for frame in whole) == b"".join(
        unmasked(frame) for frame in taken if frame.opcode < CLOSE
    )
    assert expected_controls == [(frame.opcode, frame.data) for frame in taken if frame.opcode >= CLOSE]
    if tail:  # the frame that is being forwarded, or was when invalid text came
        source = sliced[done]
        assert (tail.first, tail.length) == (source.first, source.length)
        assert source.payload.startswith(tail.payload)
        if not outcome.failure:
            assert source.payload == tail.payload
    if forwarder.ended and not outcome.failure:
        return outcome

    # What is refused is refused by the oracle too, or for one of the reasons above.
    if outcome.failure is None:
        assert their_code is None
        assert done == len(theirs), "a complete frame was kept back"
        boundary = not open_message(sliced[:done]) and len(sliced) == done
        assert forwarder.at_message_boundary == boundary
    elif outcome.failure.code == 1007:
        broken = sliced[done]
        if broken.opcode == CLOSE:
            assert not is_utf8(broken.payload[2:])
        else:
            assert invalid_text(sliced[: done + 1])
    elif outcome.failure.code == 1009:
        assert their_code == 1009
        assert len(theirs) == done
    else:
        assert outcome.failure.code == 1002
        broken = sliced[done]
        agreed = their_code == 1002 and len(theirs) == done
        bad_close = their_code == 1007 and len(theirs) == done and broken.opcode == CLOSE
        assert agreed or bad_close or is_stricter(broken, open_message(sliced[:done]))
    return outcome


def open_message(frames: list[Sliced]) -> bool:
    """Whether a stream of valid frames ends within a fragmented message."""
    data = [frame for frame in frames if frame.opcode < CLOSE]
    return bool(data) and not data[-1].fin


def is_stricter(frame: Sliced, fragmented: bool) -> bool:
    """Whether a frame breaks a rule that the oracle lacks, or reaches later than the end of the stream."""
    shortest = {2: 126, 8: 65_536}.get(len(frame.encoded_length), 0)
    if frame.length >= 1 << 63 or frame.length < shortest:
        return True
    return bool(
        frame.first & 0x70
        or (frame.opcode >= CLOSE and (not frame.fin or frame.raw[1] & 0x7F > 125))
        or (frame.opcode == 0 and not fragmented)
        or (frame.opcode in (1, 2) and fragmented)
    )


def invalid_text(frames: list[Sliced]) -> bool:
    """Whether the last data message is text that can't become valid (RFC 3629) by anything that follows."""
    data = [frame for frame in frames if frame.opcode < CLOSE]
    begin = max(at for at, frame in enumerate(data) if frame.opcode)
    if data[begin].opcode != 1:
        return False
    text = b"".join(frame.payload for frame in data[begin:])
    return not is_utf8(text, final=data[-1].fin and data[-1].complete)


def is_utf8(text: bytes, final: bool = True) -> bool:
    """Whether `text` is valid, or with `final` False may still become so."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(text, final)
    except UnicodeDecodeError:
        return False
    rest = decoder.getstate()[0]
    # An incomplete sequence is fine if some continuation completes it.
    ends = (b"", b"\x80", b"\xbf", b"\x80\x80", b"\xbf\xbf", b"\x80\x80\x80", b"\xbf\xbf\xbf")
    return final or any(decodes(rest + end) for end in ends)


def decodes(text: bytes) -> bool:
    """Whether `text` is complete, valid UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
