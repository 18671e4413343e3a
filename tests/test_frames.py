"""The forwarder forwards exactly what came, refuses what RFC 6455 refuses, and agrees with `websockets`."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame

from relay.rules.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Control,
    Failure,
    Forwarder,
    control_frame,
    frame_header,
)
from tests.frames_oracle import Outcome, compare, forward, slice_frames, unmasked

LIMIT = 200_000
MASK = b"\x12\x00\xfe\x81"
CORPUS = Path(__file__).parent / "fuzz" / "corpus"


def masked(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bytes = MASK,
    length_bytes: int | None = None,
) -> bytes:
    """A client's frame; `length_bytes` (0, 2 or 8) forces the form of its length."""
    size = len(payload)
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65_536 else 8
    short = size if length_bytes == 0 else 126 if length_bytes == 2 else 127
    head = bytes((opcode | (0x80 if fin else 0), 0x80 | short)) + size.to_bytes(8, "big")[8 - length_bytes :]
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def feed(*chunks: bytes, limit: int = LIMIT) -> Outcome:
    return forward(Forwarder(limit), chunks)


def bytewise(stream: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in stream]


# --- what passes


@pytest.mark.parametrize("size", [0, 1, 2, 3, 125, 126, 127, 2049, 65_535, 65_536, 100_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("step", [1_000_000, 4093])
def test_a_message_comes_out_unmasked_with_the_same_header(opcode: int, size: int, step: int) -> None:
    payload = bytes(at % 127 for at in range(size))
    stream = masked(opcode, payload)
    outcome = compare(stream, [stream[at : at + step] for at in range(0, len(stream), step)], LIMIT)
    assert next(slice_frames(outcome.written)).payload == payload
    assert (outcome.messages, outcome.payload_bytes) == (1, size)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_an_empty_message_beside_a_large_one_is_no_empty_write(opcode: int) -> None:
    outcome = feed(masked(opcode) + masked(opcode, b"x" * 100_000) + masked(opcode))
    assert (outcome.messages, outcome.payload_bytes) == (3, 100_000)


def test_many_small_frames_of_one_chunk_are_one_write() -> None:
    stream = b"".join(masked(BINARY, bytes(at % 120)) for at in range(400))
    result = Forwarder(LIMIT).feed(stream)
    assert len(result.writes) == 1
    assert result.messages == 400


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("payload", [b"0123456789" * 9, b"0123456789" * 20, "größe".encode() * 30])
def test_a_run_of_equal_frames_comes_out_like_any_others(opcode: int, payload: bytes) -> None:
    frames = [masked(opcode, payload, mask=random.Random(at).randbytes(4)) for at in range(20)]
    stream = b"".join(frames) + frames[0][:50]
    outcome = compare(stream, [stream], LIMIT)
    assert outcome.messages == 20


@pytest.mark.parametrize("at", [0, 3, 19])
def test_invalid_text_within_a_run_stops_before_its_frame(at: int) -> None:
    frames = [masked(TEXT, b"0123456789" * 9)] * 20
    frames[at] = masked(TEXT, b"\xff" + bytes(89))
    outcome = compare(b"".join(frames), [b"".join(frames)], LIMIT)
    assert outcome.messages == at
    assert outcome.failure
    assert outcome.failure.code == 1007


@pytest.mark.parametrize(
    "other",
    [
        masked(BINARY, bytes(91)),
        masked(TEXT, bytes(90)),
        masked(BINARY, bytes(90), fin=False),
        masked(PING, bytes(90)),
    ],
    ids=["length", "kind", "fragment", "ping"],
)
def test_a_run_with_another_frame_in_it_comes_out_in_order(other: bytes) -> None:
    stream = (
        masked(BINARY, bytes(90)) * 10 + other + masked(CONTINUATION if other[0] == 2 else BINARY, b"end")
    )
    compare(stream, [stream], LIMIT)


def test_a_run_over_the_limit_is_refused() -> None:
    assert feed(masked(BINARY, bytes(90)) * 10, limit=89).failure == Failure(
        1009, "a message is over 89 bytes"
    )


def test_a_long_non_minimal_run_is_refused() -> None:
    stream = masked(BINARY, bytes(100), length_bytes=2) * 10
    assert compare(stream, [stream], LIMIT).failure == Failure(1002, "a length isn't in its shortest form")


def test_a_chunk_that_opens_with_a_64_bit_length_is_no_run() -> None:
    stream = masked(BINARY, bytes(70_000))
    result = Forwarder(LIMIT).feed(stream)
    assert b"".join(result.writes) == unmasked(next(slice_frames(stream)))
    assert len(result.writes) == 2  # the payload isn't copied to join it with its header


def test_a_partial_payload_is_passed_on_at_once() -> None:
    stream = masked(BINARY, b"0123456789")
    forwarder = Forwarder(LIMIT)
    for chunk, out in [(3, b""), (6, b"\x82\x0a"), (9, b"012"), (14, b"34567"), (16, b"89")]:
        assert forwarder.left_out == {3: 0, 6: 0, 9: 10, 14: 7, 16: 2}[chunk]
        assert forwarder.at_message_boundary == (chunk == 3)
        result, stream = (
            forwarder.feed(stream[: chunk - (16 - len(stream))]),
            stream[chunk - (16 - len(stream)) :],
        )
        assert b"".join(result.writes) == out
    assert not forwarder.left_out
    assert forwarder.at_message_boundary


def test_fragments_and_controls_between_them_are_kept_as_they_are() -> None:
    euro = "€".encode()
    stream = (
        masked(TEXT, euro[:1], fin=False)
        + masked(PING, b"are you there?")
        + masked(CONTINUATION, b"", fin=False)
        + masked(CONTINUATION, euro[1:])
        + masked(PONG)
    )
    for chunks in ([stream], bytewise(stream)):
        outcome = compare(stream, chunks, LIMIT)
        assert outcome.written == b"\x01\x01" + euro[:1] + b"\x00\x00" + b"\x80\x02" + euro[1:]
        assert outcome.controls == [Control(PING, b"are you there?"), Control(PONG, b"")]
        assert (outcome.messages, outcome.payload_bytes) == (1, 3)


def test_within_a_fragmented_message_the_caller_may_write_but_not_hand_over() -> None:
    forwarder = Forwarder(LIMIT)
    forwarder.feed(masked(BINARY, b"x", fin=False))
    assert not forwarder.left_out
    assert not forwarder.at_message_boundary
    forwarder.feed(masked(CONTINUATION, b"x"))
    assert forwarder.at_message_boundary


def test_what_is_left_of_a_frame_and_what_belongs_to_an_unfinished_message_are_told() -> None:
    forwarder = Forwarder(LIMIT)
    assert (forwarder.left_out, forwarder.partial_bytes) == (0, 0)
    first = masked(BINARY, b"x" * 300, fin=False)
    forwarder.feed(first[:-100])
    assert (forwarder.left_out, forwarder.partial_bytes) == (100, 200)
    forwarder.feed(first[-100:])
    assert (forwarder.left_out, forwarder.partial_bytes) == (0, 300)
    ping = masked(PING, b"hello")
    forwarder.feed(ping[:-2])  # its payload is no part of the message
    assert forwarder.partial_bytes == 300
    forwarder.feed(ping[-2:] + masked(CONTINUATION, b"x" * 50))
    assert (forwarder.left_out, forwarder.partial_bytes) == (0, 0)


@pytest.mark.parametrize("refused", [b"\xff", b"\xed\xa0"], ids=["impossible", "a surrogate"])
def test_what_is_refused_for_its_text_is_not_put_out_and_so_no_part_of_a_message(refused: bytes) -> None:
    """Else it would be taken from the bytes of the whole messages before it, which are billed."""
    forwarder = Forwarder(LIMIT)
    assert forwarder.feed(masked(BINARY, b"good") + masked(TEXT, refused)).payload_bytes == 4
    assert forwarder.partial_bytes == 0
    forwarder = Forwarder(LIMIT)
    forwarder.feed(masked(TEXT, b"first", fin=False))
    forwarder.feed(masked(CONTINUATION, refused + b"!"))
    assert forwarder.partial_bytes == 5


def test_half_a_control_frame_is_no_message_boundary_but_others_may_write() -> None:
    forwarder = Forwarder(LIMIT)
    forwarder.feed(masked(PING, b"abc")[:-1])
    assert not forwarder.left_out
    assert not forwarder.at_message_boundary


@pytest.mark.parametrize("body", [b"", b"\x03\xe8", b"\x03\xf4restarting", b"\x0f\xa0" + "grüße".encode()])
def test_a_close_ends_the_forwarding_and_what_follows_is_ignored(body: bytes) -> None:
    forwarder = Forwarder(LIMIT)
    result = forwarder.feed(masked(BINARY, b"last") + masked(CLOSE, body) + masked(BINARY, b"late") + b"\xff")
    assert b"".join(result.writes) == b"\x82\x04last"
    assert result.controls == [Control(CLOSE, body)]
    assert result.failure is None
    assert forwarder.ended
    assert not forwarder.at_message_boundary
    assert not any(forwarder.feed(masked(BINARY, b"later still")))


def test_a_close_within_a_fragmented_message_is_taken() -> None:
    stream = masked(BINARY, b"x", fin=False) + masked(CLOSE, b"\x03\xe8")
    assert compare(stream, [stream], LIMIT).controls == [Control(CLOSE, b"\x03\xe8")]


# --- what is refused

BAD = {
    "an unmasked frame": (1002, b"\x82\x01x" + bytes(8)),
    "an unmasked frame with a 16-bit length": (1002, b"\x82\x7e\x01\x00" + bytes(256)),
    "the first reserved bit": (1002, masked(BINARY | 0x40, b"x")),
    "the second reserved bit": (1002, masked(BINARY | 0x20, b"x")),
    "the third reserved bit": (1002, masked(BINARY | 0x10, b"x")),
    **{f"opcode {op}": (1002, masked(op, b"x")) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a continuation of nothing": (1002, masked(CONTINUATION, b"x")),
    "a text frame within a message": (1002, masked(BINARY, b"x", fin=False) + masked(TEXT, b"x")),
    "a binary frame within a message": (1002, masked(TEXT, b"x", fin=False) + masked(BINARY, b"x")),
    "a fragmented ping": (1002, masked(PING, b"x", fin=False)),
    "a fragmented close": (1002, masked(CLOSE, b"", fin=False)),
    "a ping over 125 bytes": (1002, masked(PING, bytes(126))),
    "a pong with a 64-bit length": (1002, masked(PONG, bytes(126), length_bytes=8)),
    "a 16-bit length below 126": (1002, masked(BINARY, bytes(125), length_bytes=2)),
    "a 64-bit length below 65536": (1002, masked(BINARY, bytes(65_535), length_bytes=8)),
    "the top bit of a length": (1002, b"\x82\xff" + b"\x80" + bytes(7) + MASK),
    "half a close code": (1002, masked(CLOSE, b"\x03")),
    **{
        f"close code {code}": (1002, masked(CLOSE, code.to_bytes(2, "big")))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
    },
    "a close reason that isn't UTF-8": (1007, masked(CLOSE, b"\x03\xe8\xff")),
    "a close reason that is cut": (1007, masked(CLOSE, b"\x03\xe8\xc3")),
    "invalid UTF-8": (1007, masked(TEXT, b"ab\xffcd")),
    "an overlong form": (1007, masked(TEXT, b"\xc0\xaf")),
    "a surrogate": (1007, masked(TEXT, b"\xed\xa0\x80")),
    "beyond U+10FFFF": (1007, masked(TEXT, b"\xf4\x90\x80\x80")),
    "a sequence that is cut": (1007, masked(TEXT, b"abc\xe2\x82")),
    "a fragmented sequence that is cut": (
        1007,
        masked(TEXT, b"\xe2", fin=False) + masked(CONTINUATION, b"\x82"),
    ),
    "a sequence that is cut by an empty fragment": (
        1007,
        masked(TEXT, b"\xe2", fin=False) + masked(CONTINUATION),
    ),
    "a message over the limit": (1009, masked(BINARY, bytes(LIMIT + 1))),
    "fragments over the limit": (1009, masked(BINARY, bytes(LIMIT), fin=False) + masked(CONTINUATION, b"x")),
}


@pytest.mark.parametrize("before", [b"", masked(TEXT, b"fine"), masked(BINARY, bytes(200)) * 9], ids=len)
@pytest.mark.parametrize(("code", "bad"), BAD.values(), ids=BAD)
def test_refused(code: int, bad: bytes, before: bytes) -> None:
    stream = before + bad + masked(BINARY, b"never forwarded")
    outcome = compare(stream, [stream], LIMIT)
    assert outcome.failure
    assert outcome.failure.code == code
    assert len(outcome.failure.text.encode()) <= 123
    assert outcome.written.startswith(b"".join(unmasked(frame) for frame in slice_frames(before)))
    if len(stream) < 3000:
        outcome = compare(stream, bytewise(stream), LIMIT)
        assert outcome.failure
        assert outcome.failure.code == code


def test_half_a_close_code_is_told_to_be_one() -> None:
    assert feed(masked(CLOSE, b"\x03")).failure == Failure(1002, "a close frame with half a code")


def test_a_message_of_exactly_the_limit_passes() -> None:
    stream = masked(BINARY, b"12", fin=False) + masked(CONTINUATION, b"345") + masked(TEXT, b"12345")
    assert compare(stream, [stream], 5).messages == 2


@pytest.mark.parametrize("size", [6, 200, 70_000])
def test_too_big_is_refused_when_the_header_announces_it(size: int) -> None:
    head = masked(BINARY, bytes(size))[: -size - 4]
    assert feed(head, limit=5) == Outcome(failure=Failure(1009, "a message is over 5 bytes"))


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0", b"\xe0\x80", b"\xed\xa0", b"\xf0\x80", b"\xf4\x90", b"\xe2\x82a"]
)
def test_impossible_text_is_refused_before_its_message_ends(text: bytes) -> None:
    frame = masked(TEXT, text + bytes(10))
    for chunks in ([frame[:-10]], [*bytewise(frame[:-10])]):
        outcome = feed(*chunks)
        assert outcome.failure == Failure(1007, "invalid UTF-8 in a text message")
        assert text not in outcome.written


def test_invalid_text_within_a_frame_leaves_the_output_mid_frame() -> None:
    forwarder = Forwarder(LIMIT)
    frame = masked(TEXT, b"good\xff...")
    assert forwarder.feed(frame[:8]).writes == [b"\x81\x08go"]
    assert forwarder.feed(frame[8:]).failure
    assert forwarder.left_out
    assert not forwarder.at_message_boundary


# --- what the relay itself sends


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 1 << 20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_header_of_a_frame_of_the_relay_is_the_shortest_there_is(opcode: int, size: int) -> None:
    whole = Frame(opcode, bytes(size)).serialize(mask=False)  # type: ignore[arg-type]
    assert frame_header(opcode, size) == whole[: len(whole) - size]


def test_a_control_frame_of_the_relay_is_its_header_and_its_payload() -> None:
    assert control_frame(PONG, b"hi") == b"\x8a\x02hi"
    assert control_frame(CLOSE, b"") == b"\x88\x00"


# --- properties

SIZES = st.one_of(
    st.integers(0, 200), st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536]), st.integers(2000, 5000)
)
FRAGMENT = st.tuples(SIZES, st.booleans(), st.binary(min_size=4, max_size=4), st.integers(0, 1 << 30))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Any sequence of valid messages, fragmented anywhere, with controls between, perhaps with a close."""
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        fragments = draw(st.lists(FRAGMENT, min_size=1, max_size=4))
        for at, (size, ping, mask, seed) in enumerate(fragments):
            rnd = random.Random(seed)
            if opcode == BINARY:
                payload = rnd.randbytes(size)
            else:
                payload = (rnd.choice(["ascii ", "größer ", "日本語", "🂡🂢 x"]) * size).encode()[:size]
                payload = payload.decode(errors="ignore").encode()
            fin = at == len(fragments) - 1
            frames.append(masked(CONTINUATION if at else opcode, payload, fin=fin, mask=mask))
            if ping:
                frames.append(masked(rnd.choice([PING, PONG]), rnd.randbytes(min(size, 125)), mask=mask))
        if len(fragments) == 1 and draw(st.booleans()):
            frames[-1] *= draw(st.integers(2, 30)) if len(frames[-1]) < 3000 else 1
    if draw(st.booleans()):
        frames.append(masked(CLOSE, draw(st.sampled_from([b"", b"\x03\xe8", b"\x0f\xa1why"]))))
    return b"".join(frames)


CUT = st.tuples(
    st.sampled_from([1, 7, 64, 1000, 65_536]),
    st.integers(0, 400),
    st.lists(st.integers(0, 70_000), max_size=8),
)


def cut(stream: bytes, how: tuple[int, int, list[int]]) -> list[bytes]:
    """`stream` in chunks: steps of a size, finer ones up to an offset, and some cuts more."""
    step, fine_until, more = how
    end = len(stream)
    positions = {*range(0, min(fine_until, end), step), *range(fine_until, end, max(step, 64)), 0, end}
    positions |= {at for at in more if at < end}
    return [stream[start:stop] for start, stop in pairwise(sorted(positions))]


@settings(max_examples=120, deadline=None, report_multiple_bugs=False)
@given(st.data())
def test_any_valid_stream_cut_anywhere_comes_out_unmasked(data: st.DataObject) -> None:
    stream = data.draw(streams())
    outcome = compare(stream, cut(stream, data.draw(CUT)), 1 << 20)
    assert outcome.failure is None
    expected = [frame for frame in slice_frames(stream) if frame.opcode < CLOSE]
    assert outcome.written == b"".join(unmasked(frame) for frame in expected)


@settings(max_examples=250, deadline=None, report_multiple_bugs=False)
@given(st.data())
def test_any_mutation_is_refused_with_the_right_code_or_passes_as_the_oracle_says(
    data: st.DataObject,
) -> None:
    stream = bytearray(data.draw(streams())[:20_000])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, min(len(stream), 30)), st.integers(0, len(stream))))
        match data.draw(st.sampled_from(["flip", "set", "cut", "insert", "delete"])):
            case "flip" if at < len(stream):
                stream[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set" if at < len(stream):
                stream[at] = data.draw(st.integers(0, 255))
            case "cut":
                del stream[at:]
            case "insert":
                stream[at:at] = data.draw(st.binary(min_size=1, max_size=5))
            case _:
                del stream[at : at + data.draw(st.integers(1, 5))]
    mutated = bytes(stream)
    compare(mutated, cut(mutated, data.draw(CUT)), data.draw(st.sampled_from([100, 5000, 1 << 20])))


@settings(max_examples=200, deadline=None, report_multiple_bugs=False)
@given(st.binary(max_size=60), st.integers(1, 60))
def test_any_bytes_are_treated_as_the_oracle_treats_them(stream: bytes, step: int) -> None:
    compare(stream, [stream[at : at + step] for at in range(0, len(stream), step)], 64)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name[:12])
def test_what_the_fuzzer_found_still_agrees(path: Path) -> None:
    from tests.fuzz.fuzz_frames import check

    check(path.read_bytes())
