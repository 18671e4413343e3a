"""Noise_XX_25519_AESGCM_SHA256 (Noise Protocol Framework, revision 34), without I/O.

`Handshake` runs the three messages of the XX pattern (sections 5.3 and 7.5) and splits into a `Transport`:

    -> e
    <- e, ee, s, es
    -> s, se

Any failure poisons the object: it forgets its keys, and everything asked of it from then on raises
`NoiseError`. So nothing is ever sent or accepted after a message that was not the peer's.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROTOCOL: Final = b"Noise_XX_25519_AESGCM_SHA256"
MAX_MESSAGE: Final = 65535
"""Bytes of the longest Noise message, tag included (section 3)."""
KEY: Final = 32
TAG: Final = 16
MAX_NONCE: Final = 2**64 - 1
"""Reserved for rekeying (section 5.1): the last nonce of a message is one less."""

XX: Final[Sequence[Sequence[str]]] = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class NoiseError(Exception):
    """A message was not the peer's, or the state was used against its rules; it is of no more use."""


class _Poisonable(Protocol):
    _poisoned: bool

    def _forget(self) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=_Poisonable)


def _poisons(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Whatever goes wrong inside `method` ends the object's life."""

    @wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._poisoned:
            raise NoiseError("this state failed before and is of no more use")
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            self._poisoned = True
            self._forget()
            if isinstance(error, InvalidTag):
                raise NoiseError("a message does not authenticate") from None
            raise

    return guarded


class CipherState:
    """A key and its nonce (section 5.1). Without a key, text passes as it is."""

    def __init__(self, key: bytes | None = None, nonce: int = 0) -> None:
        self._aead = AESGCM(key) if key is not None else None
        self.nonce = nonce

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        """Ciphertext with its tag; raises `NoiseError` when the nonces are used up."""
        return plaintext if self._aead is None else self._aead.encrypt(self._next(), plaintext, ad)

    def decrypt(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Plaintext; raises `InvalidTag`, or `NoiseError` when the nonces are used up."""
        return ciphertext if self._aead is None else self._aead.decrypt(self._next(), ciphertext, ad)

    def rekey(self) -> None:
        """A new key out of the old one, the nonce staying (section 4.2); nobody can go back from it."""
        if self._aead is None:
            raise NoiseError("there is no key yet")
        self._aead = AESGCM(self._aead.encrypt(_nonce(MAX_NONCE), bytes(KEY), b"")[:KEY])

    @property
    def has_key(self) -> bool:
        """Whether what it makes is encrypted."""
        return self._aead is not None

    def _next(self) -> bytes:
        if self.nonce >= MAX_NONCE:
            raise NoiseError("the nonces are used up")
        self.nonce += 1
        return _nonce(self.nonce - 1)


class Transport:
    """The two directions after the handshake."""

    def __init__(self, sending: CipherState, receiving: CipherState, hash_: bytes, remote: bytes) -> None:
        self._sending = sending
        self._receiving = receiving
        self._poisoned = False
        self.handshake_hash = hash_
        """32 bytes that are equal on both sides if, and only if, nobody is in between (section 11.2)."""
        self.remote_static = remote
        """The peer's public key: 32 bytes that it has proven to hold the private half of."""

    @_poisons
    def encrypt(self, plaintext: bytes) -> bytes:
        """The next message; `plaintext` has at most 65,519 bytes."""
        if len(plaintext) > MAX_MESSAGE - TAG:
            raise NoiseError(f"a plaintext of {len(plaintext)} bytes is too long for one message")
        return self._sending.encrypt(b"", plaintext)

    @_poisons
    def decrypt(self, message: bytes) -> bytes:
        """The plaintext of the peer's next message, which nobody altered, left out, repeated or reordered."""
        if not TAG <= len(message) <= MAX_MESSAGE:
            raise NoiseError(f"a message can't have {len(message)} bytes")
        return self._receiving.decrypt(b"", message)

    @_poisons
    def rekey_sending(self) -> None:
        """A new key for what is sent from now on; the peer does `rekey_receiving` at the same message."""
        self._sending.rekey()

    @_poisons
    def rekey_receiving(self) -> None:
        """A new key for what is received from now on."""
        self._receiving.rekey()

    def _forget(self) -> None:
        self._sending = self._receiving = CipherState()


class Handshake:
    """One side of XX. The initiator writes messages 1 and 3, the responder message 2; each carries a payload.

    `static` proves who this side is; `ephemeral` is for test vectors only: never use one twice. Payload 1 is
    readable by all, payload 2 by whoever the initiator is, payload 3 by the responder that sent message 2.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        static: X25519PrivateKey,
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        self._initiator = initiator
        self._static = static
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._remote_ephemeral: X25519PublicKey | None = None
        self._remote_static: X25519PublicKey | None = None
        self._cipher = CipherState()
        self._chaining_key = self._hash = PROTOCOL.ljust(32, b"\0")
        self._messages = 0
        self._poisoned = False
        self._mix_hash(prologue)

    @property
    def complete(self) -> bool:
        """Whether all three messages are through."""
        return self._messages == len(XX)

    @property
    def writes(self) -> bool:
        """Whether the next message is this side's to write."""
        return not self.complete and (self._messages % 2 == 0) == self._initiator

    @_poisons
    def write(self, payload: bytes = b"") -> bytes:
        """The next handshake message."""
        if not self.writes:
            raise NoiseError("it is not this side's turn to write")
        message = b""
        for step in XX[self._messages]:
            if step == "e":
                public = self._ephemeral.public_key().public_bytes_raw()
                self._mix_hash(public)
                message += public
            elif step == "s":
                message += self._encrypt_and_hash(self._static.public_key().public_bytes_raw())
            else:
                self._mix_dh(step)
        message += self._encrypt_and_hash(payload)
        if len(message) > MAX_MESSAGE:
            raise NoiseError(f"a payload of {len(payload)} bytes is too long for a handshake message")
        self._messages += 1
        return message

    @_poisons
    def read(self, message: bytes) -> bytes:
        """The payload of the peer's next handshake message."""
        if self.complete or self.writes:
            raise NoiseError("it is not the peer's turn to write")
        if len(message) > MAX_MESSAGE:
            raise NoiseError(f"a message can't have {len(message)} bytes")
        rest = message
        for step in XX[self._messages]:
            if step == "e":
                public, rest = _split(rest, KEY)
                self._remote_ephemeral = X25519PublicKey.from_public_bytes(public)
                self._mix_hash(public)
            elif step == "s":
                sealed, rest = _split(rest, KEY + TAG)
                self._remote_static = X25519PublicKey.from_public_bytes(self._decrypt_and_hash(sealed))
            else:
                self._mix_dh(step)
        if self._cipher.has_key and len(rest) < TAG:
            raise NoiseError("a handshake message is too short")
        payload = self._decrypt_and_hash(rest)
        self._messages += 1
        return payload

    @_poisons
    def split(self) -> Transport:
        """The transport, once `complete`. The handshake is used up by it."""
        if not self.complete or self._remote_static is None:
            raise NoiseError("the handshake is not complete")
        first, second = _hkdf(self._chaining_key, b"")
        ciphers = CipherState(first), CipherState(second)
        sending, receiving = ciphers if self._initiator else ciphers[::-1]
        transport = Transport(sending, receiving, self._hash, self._remote_static.public_bytes_raw())
        self._poisoned = True
        self._forget()
        return transport

    def _forget(self) -> None:
        del self._static, self._ephemeral, self._chaining_key
        self._cipher = CipherState()

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_dh(self, step: str) -> None:
        """Mix in a Diffie-Hellman result; in the step's name the initiator's key stands first."""
        mine, theirs = (step[0], step[1]) if self._initiator else (step[1], step[0])
        private = self._ephemeral if mine == "e" else self._static
        public = self._remote_ephemeral if theirs == "e" else self._remote_static
        if public is None:  # the pattern has every key before its first use
            raise NoiseError("a key is used before it is known")
        try:
            shared = private.exchange(public)
        except ValueError:  # all zeros: a point of small order, by which the peer would fix the secret
            raise NoiseError("the peer's key is not a valid one") from None
        self._chaining_key, key = _hkdf(self._chaining_key, shared)
        self._cipher = CipherState(key)

    def _encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self._cipher.encrypt(self._hash, plaintext)
        self._mix_hash(ciphertext)
        return ciphertext

    def _decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self._cipher.decrypt(self._hash, ciphertext)
        self._mix_hash(ciphertext)
        return plaintext


def _nonce(number: int) -> bytes:
    """AESGCM of section 12.4: 32 zero bits, then the number in 64 bits big-endian."""
    return bytes(4) + number.to_bytes(8, "big")


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs (section 4.3)."""
    temporary = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")


def _split(message: bytes, length: int) -> tuple[bytes, bytes]:
    if len(message) < length:
        raise NoiseError("a handshake message is too short")
    return message[:length], message[length:]
