"""What two peers say to each other through the relay, exactly; and its record layer, without I/O.

All of it is in binary WebSocket messages, one Noise message each, of at most 65,535 bytes. A text message,
a longer one, or anything that doesn't fit what follows ends the connection. Numbers are big-endian.

**1. Hello**, unencrypted, from each side as soon as its WebSocket is open (the relay keeps it for a peer
that is not there yet): the 11 bytes `lem-relay/1`, then 16 random bytes, its nonce, fresh for each
connection. Nobody knows from the relay who came first, so the side with the greater nonce (compared byte by
byte, as numbers) is the Noise initiator. Equal nonces are one's own hello, reflected: refuse.

**2. Handshake**: Noise_XX_25519_AESGCM_SHA256, Noise revision 34. The prologue is

    "lem-relay/1" 00 session-id-in-ASCII 00 initiator's-nonce responder's-nonce

so both sides speak of the same session and saw the same hellos. Three messages: the initiator's, the
responder's, the initiator's. Payload 1 is empty. Payloads 2 and 3 are empty, or the ASCII of a vouching
token: a JWT signed with RS256/384/512, ES256/384/512 or EdDSA, with the claims `exp`, `token_type` (the word
`vouching`), `session_id` (this session) and `noise_key` (fingerprint of the sender's static key). A
fingerprint is `SHA256:` and the base64, without padding, of the SHA-256 of the 32 bytes of the key. One that
is signed with a shared secret (HS...) proves nothing and is refused.

The responder sends payload 2 before it knows who the initiator is, so anyone in between may read it. That is
why a vouching token is a token of its own: it opens nothing, as the relay lets in no `token_type` but
`access`, and is worth nothing without the private key that it names. The token that opens the session is
never shown to the peer, and is refused as a vouching token by its missing `token_type`.

**3. Records**: each Noise transport message holds one byte of type, then up to 65,518 bytes of body.

| type | name | body |
|---|---|---|
| 00 | ready | empty. The first record of each side, after it has checked who the peer is and not before |
| 01 | more | a part of a message, which the next record continues |
| 02 | last | the last or only part of a message, possibly empty |
| 03 | end | empty. Nothing follows from this side; the other direction stays open |

No other record is sent before the peer's `ready` has come. A side that has sent and received `end` closes
with 1000. A WebSocket that closes without the peer's `end` lost something: the last message may be missing.
(An `end` says that its sender has nothing more to say, not that it has got everything: applications
acknowledge what matters to them.) A message is as long as both sides are willing to hold, 16 MiB unless
they agreed otherwise.

**4. Rekey**: each direction by itself: after its 16,384th, 32,768th, ... transport message the sender and
the receiver of that direction do Noise's REKEY (section 4.2: the first 32 bytes of the encryption of 32
zero bytes with nonce 2^64-1 and no associated data). The nonce goes on counting.

**5. Words** to compare by voice: SHA-256 of `lem-relay/1 words` and the handshake hash (32 bytes); its
first 128 bits are eight words of 16 bits, each word five letters: 4 bits consonant, 2 bits vowel, 4, 2, 4,
from `bdfghjklmnprstvz` and `aiou`, joined by `-`. Whoever sits in between has a handshake with each side and
can vary the last message of both until the words agree, which takes tries in the order of the square root of
all words there are: 2^64 of them within the time of a handshake.

A side that refuses its peer closes with 3403.
"""

import base64
import hashlib
import secrets
from enum import IntEnum
from typing import Final

from relay.client.noise import MAX_MESSAGE, TAG, Transport

VERSION: Final = b"lem-relay/1"
NONCE: Final = 16
"""Random bytes in a hello."""
MAX_BODY: Final = MAX_MESSAGE - TAG - 1
"""Bytes of the longest body of a record."""
REKEY_MESSAGES: Final = 16_384
"""Transport messages between two rekeys of a direction: at most 1 GiB under one key."""
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the longest message that is put together again, unless the application chooses otherwise."""
REFUSED: Final = 3403
"""Close code by which a side tells that it does not accept its peer."""

_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"


class WireError(Exception):
    """The peer, or whoever is in between, does not keep to the protocol."""


class Record(IntEnum):
    """The types of records."""

    READY = 0
    MORE = 1
    LAST = 2
    END = 3


def hello() -> bytes:
    """A new hello."""
    return VERSION + secrets.token_bytes(NONCE)


def agree(session_id: str, ours: bytes, theirs: bytes) -> tuple[bool, bytes]:
    """Whether this side is the initiator, and the prologue, from the two hellos; raises `WireError`."""
    if len(theirs) != len(VERSION) + NONCE or not theirs.startswith(VERSION):
        raise WireError("the peer does not speak lem-relay/1")
    if ours == theirs:
        raise WireError("the peer's hello is our own, reflected")
    first, second = sorted((ours, theirs), reverse=True)
    nonces = first[len(VERSION) :] + second[len(VERSION) :]
    return ours == first, VERSION + b"\0" + session_id.encode("ascii") + b"\0" + nonces


def fingerprint(public_key: bytes) -> str:
    """How a public key (32 bytes) is written for people and files."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode().rstrip("=")


def words(handshake_hash: bytes) -> str:
    """Eight words that are equal on both sides if nobody is in between, and else with a chance of 2^-128.

    Whoever is in between improves that by trying, see above.
    """
    digest = hashlib.sha256(VERSION + b" words" + handshake_hash).digest()
    return "-".join(_word(int.from_bytes(digest[at : at + 2])) for at in range(0, 16, 2))


def _word(bits: int) -> str:
    c, v = _CONSONANTS, _VOWELS
    return c[bits >> 12] + v[bits >> 10 & 3] + c[bits >> 6 & 15] + v[bits >> 4 & 3] + c[bits & 15]


class Channel:
    """Records over a Noise transport, both ways. Everything wrong raises `WireError` or `NoiseError`."""

    def __init__(self, transport: Transport, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._transport = transport
        self._max_message_bytes = max_message_bytes
        self._sent = self._received = 0
        self._parts: list[memoryview] = []
        self._length = 0
        self.ready = False
        """Whether the peer's `ready` has come."""
        self.ended = False
        """Whether the peer's `end` has come."""
        self.closed = False
        """Whether this side has sent `end`."""

    def seal(self, kind: Record, body: bytes | memoryview = b"") -> bytes:
        """The WebSocket message that carries a record."""
        if self.closed:
            raise WireError("nothing can be sent after the end")
        if kind in (Record.MORE, Record.LAST) and not self.ready:
            raise WireError("nothing can be sent before the peer is ready")
        message = self._transport.encrypt(b"".join((bytes((kind,)), body)))
        self._sent += 1
        if self._sent % REKEY_MESSAGES == 0:
            self._transport.rekey_sending()
        self.closed = kind is Record.END
        return message

    def open(self, message: bytes) -> bytes | None:
        """The application's message that `message` completes, or None where it completes none."""
        plaintext = self._transport.decrypt(message)
        self._received += 1
        if self._received % REKEY_MESSAGES == 0:
            self._transport.rekey_receiving()
        try:
            kind = Record(plaintext[0])
        except (IndexError, ValueError):
            raise WireError("the peer sent a record of no known type") from None
        if self.ended or (kind is Record.READY) == self.ready:
            raise WireError("the peer sent a record out of its order")
        if kind in (Record.READY, Record.END):
            if len(plaintext) > 1 or self._parts:
                raise WireError("the peer sent a record out of its order")
            self.ready = True
            self.ended = kind is Record.END
            return None
        self._length += len(plaintext) - 1
        if self._length > self._max_message_bytes:
            raise WireError(f"the peer sent a message of more than {self._max_message_bytes} bytes")
        self._parts.append(memoryview(plaintext)[1:])
        if kind is Record.MORE:
            if len(plaintext) == 1:
                raise WireError("the peer sent an empty part, which would go on for ever")
            return None
        whole = b"".join(self._parts)
        self._parts.clear()
        self._length = 0
        return whole


def parts(message: bytes | memoryview) -> list[tuple[Record, memoryview]]:
    """The records that carry an application's message."""
    cuts = range(0, max(len(message), 1), MAX_BODY)
    view = memoryview(message)
    return [
        (Record.MORE if at + MAX_BODY < len(message) else Record.LAST, view[at : at + MAX_BODY])
        for at in cuts
    ]
