"""The record layer between peers: who initiates, what a record may be, and where a message ends."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from relay.client.noise import Handshake, NoiseError, Transport
from relay.client.wire import (
    MAX_BODY,
    REKEY_MESSAGES,
    VERSION,
    Channel,
    Record,
    WireError,
    agree,
    hello,
    parts,
    words,
)


def transports() -> tuple[Transport, Transport]:
    initiator, responder = (
        Handshake(initiator=side, prologue=b"", static=X25519PrivateKey.generate()) for side in (True, False)
    )
    responder.read(initiator.write())
    initiator.read(responder.write())
    responder.read(initiator.write())
    return initiator.split(), responder.split()


def channels(max_message_bytes: int = 1000) -> tuple[Channel, Channel]:
    ours, theirs = (Channel(transport, max_message_bytes) for transport in transports())
    theirs.open(ours.seal(Record.READY))
    ours.open(theirs.seal(Record.READY))
    return ours, theirs


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_exactly_one_side_initiates_and_both_have_one_prologue(one: bytes, two: bytes) -> None:
    one, two = VERSION + one, VERSION + two
    if one == two:
        with pytest.raises(WireError, match="reflected"):
            agree("demo", one, two)
        return
    (first, prologue), (second, same) = agree("demo", one, two), agree("demo", two, one)
    assert first != second
    assert prologue == same
    assert agree("other", one, two)[1] != prologue


@pytest.mark.parametrize("bad", [b"", VERSION, b"lem-relay/2" + bytes(16), hello() + b"x", hello()[:-1]])
def test_another_protocol_is_told_apart(bad: bytes) -> None:
    with pytest.raises(WireError):
        agree("demo", hello(), bad)


def test_words_are_eight_and_depend_on_every_handshake() -> None:
    assert words(bytes(32)) == words(bytes(32))
    assert words(bytes(32)) != words(bytes([1]) * 32)
    assert [len(word) for word in words(bytes(32)).split("-")] == [5] * 8


@given(st.sampled_from([0, 1, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 3 * MAX_BODY, 200_000]))
def test_a_message_of_any_length_comes_out_whole(length: int) -> None:
    ours, theirs = channels(200_000)
    message = bytes(length)
    *early, last = [theirs.open(ours.seal(*part)) for part in parts(message)]
    assert early == [None] * len(early)
    assert last == message


def test_nothing_of_the_application_goes_before_the_peer_is_ready() -> None:
    ours, theirs = (Channel(transport) for transport in transports())
    with pytest.raises(WireError):
        ours.seal(Record.LAST, b"too early")
    ours.ready = True  # a peer that breaks the rule
    with pytest.raises(WireError):
        theirs.open(ours.seal(Record.LAST, b"too early"))


def test_nothing_comes_after_the_end() -> None:
    ours, theirs = channels()
    assert theirs.open(ours.seal(Record.END)) is None
    assert theirs.ended
    with pytest.raises(WireError):
        ours.seal(Record.LAST, b"late")
    ours.closed = False  # a peer that breaks the rule
    with pytest.raises(WireError):
        theirs.open(ours.seal(Record.LAST, b"late"))


@pytest.mark.parametrize(
    "plaintexts",
    [[b""], [b"\x04"], [b"\x00"], [b"\x03x"], [b"\x01a", b"\x03"], [b"\x01"], [b"\x02" + bytes(1001)],
     [b"\x01" + bytes(600), b"\x02" + bytes(401)]],
)  # fmt: skip
def test_a_record_that_breaks_the_rules_ends_it(plaintexts: list[bytes]) -> None:
    ours, theirs = channels()
    *before, bad = [ours._transport.encrypt(plaintext) for plaintext in plaintexts]
    for message in before:
        theirs.open(message)
    with pytest.raises(WireError):
        theirs.open(bad)


def test_both_sides_change_keys_at_the_same_message() -> None:
    ours, theirs = channels()
    for _ in range(2 * REKEY_MESSAGES):
        assert theirs.open(ours.seal(Record.LAST, b"x")) == b"x"
    ours._sent -= 1  # one that miscounts
    for _ in range(REKEY_MESSAGES - 2):
        theirs.open(ours.seal(Record.LAST, b"x"))
    with pytest.raises(NoiseError):  # noqa: PT012
        for _ in range(4):
            theirs.open(ours.seal(Record.LAST, b"x"))
