"""Our Noise beside noise-c, compiled to WebAssembly and run by Node.js: an implementation that shares no line
with ours, nor its language, nor its cryptography. (It has no rekey; the unit tests have another oracle.)"""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from relay.client.noise import MAX_MESSAGE, TAG, Handshake, NoiseError, Transport
from tests.client.ends import ALICE, BOB
from tests.client.test_command_line import finish
from tests.relays import ROOT

pytestmark = pytest.mark.system

PROLOGUE = b"lem-relay/1\0demo\0" + bytes(range(32))
PAYLOADS = [b"", b"eyJ.eyJ.sig", os.urandom(3000)]
"""Of the three handshake messages."""
MESSAGES = [b"", b"x", os.urandom(1000), os.urandom(MAX_MESSAGE - TAG)]


class NoiseC:
    """One side of the handshake in a process of Node.js."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["node", str(ROOT / "tests" / "client" / "noise_peer.js")],
            env={**os.environ, "NODE_PATH": str(ROOT / "var" / "node" / "node_modules")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, do: str, **values: bytes | str) -> dict[str, Any]:
        """The answer to one command."""
        plain = {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **plain}).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def bytes(self, do: str, **values: bytes) -> bytes:
        """The bytes that one command gives, which has to succeed."""
        return bytes.fromhex(self.ask(do, **values)["bytes"])

    def close(self) -> None:
        assert finish(self._process).returncode == 0


@pytest.fixture
def theirs() -> Iterator[NoiseC]:
    side = NoiseC()
    yield side
    side.close()


def start(theirs: NoiseC, *, initiator: bool) -> Handshake:
    """Our side, as the initiator or not; theirs is the other one, with Bob's key."""
    role = "RESPONDER" if initiator else "INITIATOR"
    assert theirs.ask("start", role=role, prologue=PROLOGUE, static=BOB.private_bytes_raw()) == {}
    return Handshake(initiator=initiator, prologue=PROLOGUE, static=ALICE)


def exchange(ours: Handshake, theirs: NoiseC, payloads: list[bytes]) -> None:
    """Handshake messages, one for each payload, from the first."""
    for payload in payloads:
        if ours.writes:
            assert theirs.bytes("read", message=ours.write(payload)) == payload
        else:
            assert ours.read(theirs.bytes("write", payload=payload)) == payload


def shaken(theirs: NoiseC, *, initiator: bool) -> Transport:
    """Our transport after a handshake on which both sides agree."""
    ours = start(theirs, initiator=initiator)
    exchange(ours, theirs, PAYLOADS)
    transport = ours.split()
    assert theirs.ask("split") == {
        "hash": transport.handshake_hash.hex(),
        "remote": ALICE.public_key().public_bytes_raw().hex(),
    }
    assert transport.remote_static == BOB.public_key().public_bytes_raw()
    return transport


def tampered(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


@pytest.mark.parametrize("initiator", [True, False], ids=["initiator", "responder"])
def test_both_shake_hands_and_understand_each_other(theirs: NoiseC, initiator: bool) -> None:
    transport = shaken(theirs, initiator=initiator)
    for message in MESSAGES:
        assert theirs.bytes("decrypt", message=transport.encrypt(message)) == message
        assert transport.decrypt(theirs.bytes("encrypt", plaintext=message)) == message


@pytest.mark.parametrize("initiator", [True, False], ids=["initiator", "responder"])
def test_both_refuse_a_message_that_was_tampered_with(theirs: NoiseC, initiator: bool) -> None:
    transport = shaken(theirs, initiator=initiator)
    answer = theirs.ask("decrypt", message=tampered(transport.encrypt(b"hello")))
    assert answer == {"error": "NOISE_ERROR_MAC_FAILURE"}
    with pytest.raises(NoiseError):
        transport.decrypt(tampered(theirs.bytes("encrypt", plaintext=b"hello")))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("initiator", [True, False], ids=["initiator", "responder"])
def test_both_refuse_a_handshake_that_was_tampered_with(theirs: NoiseC, initiator: bool, number: int) -> None:
    """From the second message on: nothing of the first is secret, and what is altered there shows later."""
    ours = start(theirs, initiator=initiator)
    exchange(ours, theirs, PAYLOADS[:number])
    if ours.writes:
        answer = theirs.ask("read", message=tampered(ours.write(b"payload")))
        assert answer == {"error": "NOISE_ERROR_MAC_FAILURE"}
    else:
        with pytest.raises(NoiseError):
            ours.read(tampered(theirs.bytes("write", payload=b"payload")))


@pytest.mark.parametrize("initiator", [True, False], ids=["initiator", "responder"])
def test_another_prologue_ends_the_handshake(theirs: NoiseC, initiator: bool) -> None:
    start(theirs, initiator=initiator)
    ours = Handshake(initiator=initiator, prologue=PROLOGUE + b"x", static=ALICE)
    exchange(ours, theirs, [b""])
    if initiator:
        with pytest.raises(NoiseError):
            ours.read(theirs.bytes("write", payload=b""))
    else:
        assert theirs.ask("read", message=ours.write()) == {"error": "NOISE_ERROR_MAC_FAILURE"}
