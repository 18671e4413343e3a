"""Noise XX: the published vectors, another implementation as the peer, every malformed message refused."""

import hashlib
import hmac
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from relay.client import noise
from relay.client.noise import KEY, MAX_MESSAGE, MAX_NONCE, TAG, CipherState, Handshake, NoiseError, Transport

VECTORS, SIBLINGS = (
    json.loads((Path(__file__).parents[1] / "client" / name).read_text(encoding="utf-8"))
    for name in ("noise_vectors.json", "noise_vectors_siblings.json")
)
"""The published vectors of this suite (cacophony's, snow's and noise-go's), in one form; then those of the
suites that differ from it in cipher and hash (cacophony's and snow's)."""

CIPHERS: dict[str, Any] = {"AESGCM": (AESGCM, "big"), "ChaChaPoly": (ChaCha20Poly1305, "little")}
"""Each cipher and the byte order of its nonce (section 12)."""

PROLOGUE = b"tests"
ALICE, BOB = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))


def private(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def sides(prologue: bytes = PROLOGUE) -> tuple[Handshake, Handshake]:
    return (
        Handshake(initiator=True, prologue=prologue, static=ALICE),
        Handshake(initiator=False, prologue=prologue, static=BOB),
    )


def transports() -> tuple[Transport, Transport]:
    initiator, responder = sides()
    responder.read(initiator.write())
    initiator.read(responder.write())
    responder.read(initiator.write())
    return initiator.split(), responder.split()


def before(number: int) -> tuple[Handshake, Handshake]:
    """Writer and reader of handshake message `number`, the ones before it being through."""
    writer, reader = sides()
    for _ in range(number):
        reader.read(writer.write(b"payload"))
        writer, reader = reader, writer
    return writer, reader


def check(vector: dict[str, Any]) -> None:
    """Both sides make a vector's messages, and understand them."""
    prologue = bytes.fromhex(vector["prologue"])
    initiator, responder = (
        Handshake(
            initiator=side == "init",
            prologue=prologue,
            static=private(vector[f"{side}_static"]),
            ephemeral=private(vector[f"{side}_ephemeral"]),
        )
        for side in ("init", "resp")
    )
    messages = [(bytes.fromhex(a), bytes.fromhex(b)) for a, b in vector["messages"]]
    writer, reader = initiator, responder
    for payload, ciphertext in messages[:3]:
        assert writer.write(payload) == ciphertext
        assert reader.read(ciphertext) == payload
        writer, reader = reader, writer
    first, second = initiator.split(), responder.split()
    assert first.handshake_hash == second.handshake_hash
    if vector["handshake_hash"]:
        assert first.handshake_hash.hex() == vector["handshake_hash"]
    assert second.remote_static == private(vector["init_static"]).public_key().public_bytes_raw()
    # The fourth message is the responder's in some collections, and the initiator's in others.
    sender, receiver = (first, second) if vector["source"] == "noise-go" else (second, first)
    assert len(messages) > 3
    for payload, ciphertext in messages[3:]:
        assert sender.encrypt(payload) == ciphertext
        assert receiver.decrypt(ciphertext) == payload
        sender, receiver = receiver, sender


def speak(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another suite's name, cipher and hash in the place of the module's own."""
    cipher, digest = protocol.split("_")[3:]
    aead, order = CIPHERS[cipher]
    new = getattr(hashlib, digest.lower())
    name, length = protocol.encode(), new().digest_size
    begin = name.ljust(length, b"\0") if len(name) <= length else new(name).digest()  # section 5.2
    monkeypatch.setattr(noise, "PROTOCOL", begin)
    monkeypatch.setattr(noise, "AESGCM", lambda key: aead(key[:KEY]))  # of a longer hash the first 32 bytes
    monkeypatch.setattr(noise, "_nonce", lambda number: bytes(4) + number.to_bytes(8, order))
    monkeypatch.setattr(noise, "hashlib", SimpleNamespace(sha256=new))
    keyed = SimpleNamespace(digest=lambda key, message, _: hmac.new(key, message, new).digest())
    monkeypatch.setattr(noise, "hmac", keyed)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['source']} {len(v['messages'])}")
def test_the_published_vectors_come_out(vector: dict[str, Any]) -> None:
    check(vector)


@pytest.mark.parametrize("vector", SIBLINGS, ids=lambda v: f"{v['source']} {v['protocol']}")
def test_the_same_handshake_makes_the_published_vectors_of_the_sibling_suites(
    vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(vector["protocol"], monkeypatch)
    check(vector)


@pytest.mark.parametrize("we_initiate", [True, False])
def test_another_implementation_understands_us(we_initiate: bool) -> None:
    theirs = NoiseConnection.from_name(b"Noise_XX_25519_AESGCM_SHA256")
    theirs.set_prologue(PROLOGUE)
    theirs.set_keypair_from_private_bytes(Keypair.STATIC, BOB.private_bytes_raw())
    (theirs.set_as_responder if we_initiate else theirs.set_as_initiator)()
    theirs.start_handshake()
    ours = Handshake(initiator=we_initiate, prologue=PROLOGUE, static=ALICE)
    for number in range(3):
        payload = b"payload %d" % number
        if ours.writes:
            assert theirs.read_message(ours.write(payload)) == payload
        else:
            assert ours.read(bytes(theirs.write_message(payload))) == payload
    transport = ours.split()
    assert transport.handshake_hash == theirs.get_handshake_hash()
    assert transport.remote_static == BOB.public_key().public_bytes_raw()
    for text in (b"", b"one", bytes(MAX_MESSAGE - TAG)):
        assert theirs.decrypt(transport.encrypt(text)) == text
        assert transport.decrypt(theirs.encrypt(text)) == text
    transport.rekey_sending()
    theirs.rekey_inbound_cipher()
    assert theirs.decrypt(transport.encrypt(b"new key")) == b"new key"
    theirs.rekey_outbound_cipher()
    transport.rekey_receiving()
    assert transport.decrypt(theirs.encrypt(b"new key")) == b"new key"


@given(number=st.integers(0, 2), bit=st.integers(0, 8 * 200))
def test_a_flipped_bit_in_the_handshake_ends_it(number: int, bit: int) -> None:
    writer, reader = before(number)
    message = bytearray(writer.write(b"payload"))
    bit %= 8 * len(message)
    message[bit // 8] ^= 1 << bit % 8
    if number == 0:  # nothing authenticates the first message by itself; the second then does not fit
        try:
            reader.read(bytes(message))
        except NoiseError:
            return
        with pytest.raises(NoiseError):
            writer.read(reader.write())
        return
    with pytest.raises(NoiseError):
        reader.read(bytes(message))
    with pytest.raises(NoiseError):
        reader.write()


@given(number=st.integers(0, 2), length=st.integers(0, 200))
def test_a_handshake_message_cut_short_ends_it(number: int, length: int) -> None:
    writer, reader = before(number)
    message = writer.write()
    with pytest.raises(NoiseError):
        reader.read(message[: length % len(message)])


@given(number=st.integers(1, 2), more=st.binary(min_size=1))
def test_a_handshake_message_made_longer_ends_it(number: int, more: bytes) -> None:
    writer, reader = before(number)
    with pytest.raises(NoiseError):
        reader.read(writer.write() + more)


@given(number=st.integers(0, 2), message=st.binary(max_size=300))
def test_bytes_from_nobody_never_finish_a_handshake(number: int, message: bytes) -> None:
    _, reader = before(number)
    try:
        reader.read(message)
    except NoiseError:
        with pytest.raises(NoiseError):
            reader.read(message)
    else:
        assert number == 0, "only the first message is anybody's"
        assert not reader.complete


def test_another_prologue_ends_it() -> None:
    initiator, _ = sides()
    _, responder = sides(b"another session")
    responder.read(initiator.write())
    with pytest.raises(NoiseError):
        initiator.read(responder.write())


@pytest.mark.parametrize("point", [bytes(32), bytes([1]) + bytes(31)])
def test_a_key_that_would_fix_the_secret_is_refused(point: bytes) -> None:
    _, responder = sides()
    responder.read(point)
    with pytest.raises(NoiseError, match="not a valid one"):
        responder.write()


def test_a_handshake_is_used_in_its_order_only() -> None:
    for misuse in (
        lambda initiator, responder: responder.write(),
        lambda initiator, responder: initiator.read(bytes(32)),
        lambda initiator, responder: initiator.split(),
    ):
        pair = sides()
        with pytest.raises(NoiseError):
            misuse(*pair)
    initiator, responder = sides()
    responder.read(initiator.write())
    initiator.read(responder.write())
    responder.read(initiator.write())
    assert initiator.complete
    assert not initiator.writes
    initiator.split()
    with pytest.raises(NoiseError):
        initiator.split()
    with pytest.raises(NoiseError):
        responder.write()


def test_handshake_messages_have_a_longest_length() -> None:
    writer, reader = before(0)
    message = writer.write(bytes(MAX_MESSAGE - 32))
    assert len(message) == MAX_MESSAGE
    assert len(reader.read(message)) == MAX_MESSAGE - 32
    writer, reader = before(0)
    with pytest.raises(NoiseError):
        reader.read(message + b"x")
    with pytest.raises(NoiseError):
        writer.write(bytes(MAX_MESSAGE - 31))


def test_a_key_used_before_it_is_known_is_refused() -> None:
    handshake, _ = sides()
    with pytest.raises(NoiseError):
        handshake._mix_dh("ee")


@given(bit=st.integers(0, 8 * (5 + TAG) - 1))
def test_a_flipped_bit_in_a_message_ends_the_transport(bit: int) -> None:
    ours, theirs = transports()
    message = bytearray(ours.encrypt(b"hello"))
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(NoiseError):
        theirs.decrypt(bytes(message))
    with pytest.raises(NoiseError):
        theirs.encrypt(b"after it")


@given(length=st.integers(0, 4 + TAG), more=st.binary(min_size=1))
def test_a_message_of_another_length_ends_the_transport(length: int, more: bytes) -> None:
    ours, theirs = transports()
    message = ours.encrypt(b"hello")
    with pytest.raises(NoiseError):
        theirs.decrypt(message[:length])
    ours, theirs = transports()
    with pytest.raises(NoiseError):
        theirs.decrypt(ours.encrypt(b"hello") + more)


@given(count=st.integers(2, 6), data=st.data())
def test_messages_out_of_their_order_end_the_transport(count: int, data: st.DataObject) -> None:
    ours, theirs = transports()
    messages = [ours.encrypt(bytes([n])) for n in range(count)]
    order = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))
    for place, number in enumerate(order):
        if number == place:
            assert theirs.decrypt(messages[number]) == bytes([number])
            continue
        with pytest.raises(NoiseError):
            theirs.decrypt(messages[number])
        break


def test_a_message_sent_back_to_its_sender_is_refused() -> None:
    ours, _ = transports()
    with pytest.raises(NoiseError):
        ours.decrypt(ours.encrypt(b"hello"))


def test_messages_have_a_longest_length() -> None:
    ours, theirs = transports()
    message = ours.encrypt(bytes(MAX_MESSAGE - TAG))
    assert len(message) == MAX_MESSAGE
    assert theirs.decrypt(message) == bytes(MAX_MESSAGE - TAG)
    with pytest.raises(NoiseError):
        theirs.decrypt(message + b"x")
    with pytest.raises(NoiseError):
        ours.encrypt(bytes(MAX_MESSAGE - TAG + 1))


def test_a_key_changed_on_one_side_only_ends_the_transport() -> None:
    ours, theirs = transports()
    ours.rekey_sending()
    with pytest.raises(NoiseError):
        theirs.decrypt(ours.encrypt(b"hello"))


def test_the_last_nonce_is_never_used_for_a_message() -> None:
    ours = CipherState(bytes(32), MAX_NONCE - 1)
    theirs = CipherState(bytes(32), MAX_NONCE - 1)
    assert theirs.decrypt(b"", ours.encrypt(b"", b"the last one")) == b"the last one"
    with pytest.raises(NoiseError):
        ours.encrypt(b"", b"one too many")
    with pytest.raises(NoiseError):
        theirs.decrypt(b"", bytes(TAG))


def test_there_is_nothing_to_rekey_without_a_key() -> None:
    with pytest.raises(NoiseError):
        CipherState().rekey()
