"""Whom the client accepts as its peer, and what it says of itself."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from relay.client.peers import (
    Fingerprint,
    KeyFileError,
    KnownPeers,
    PeerRefused,
    SignedClaim,
    claims_of,
    own_key,
    vouching,
)
from relay.client.wire import fingerprint
from tests.tokens import token

KEY, OTHER = bytes([1]) * 32, bytes([2]) * 32
SIGNERS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def private_pem(algorithm: str) -> str:
    key = SIGNERS[algorithm]
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def rule(algorithm: str) -> SignedClaim:
    public = SIGNERS[algorithm].public_key()
    return SignedClaim(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def signed(algorithm: str, **claims: object) -> str:
    claims = {"token_type": "vouching", "session_id": "demo", "noise_key": fingerprint(KEY), **claims}
    return token(private_pem(algorithm), algorithm, **claims)


def test_a_fingerprint_lets_its_key_in_and_no_other() -> None:
    Fingerprint(fingerprint(KEY)).check(KEY, "demo", b"")
    with pytest.raises(PeerRefused):
        Fingerprint(fingerprint(KEY)).check(OTHER, "demo", b"")


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_signed_claim_lets_its_key_in(algorithm: str) -> None:
    rule(algorithm).check(KEY, "demo", signed(algorithm).encode())


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_signed_claim_lets_nothing_else_in(algorithm: str) -> None:
    with pytest.raises(PeerRefused, match="another key"):
        rule(algorithm).check(OTHER, "demo", signed(algorithm).encode())
    for bad in (
        signed(algorithm, session_id="other"),
        signed(algorithm, session_id=None),
        signed(algorithm, noise_key=None),
        signed(algorithm, token_type=None),  # as that of a token which opens the session
        signed(algorithm, token_type="access"),
        signed(algorithm, exp=None),
        signed(algorithm, exp=1),
        signed(algorithm)[:-6] + "AAAAAA",
        "no token",
        "",
    ):
        with pytest.raises(PeerRefused):
            rule(algorithm).check(KEY, "demo", bad.encode())


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_shared_secret_can_not_forge_a_claim(algorithm: str) -> None:
    claims = {"token_type": "vouching", "session_id": "demo", "noise_key": fingerprint(KEY)}
    forged = token(**claims)
    with pytest.raises(PeerRefused):
        rule(algorithm).check(KEY, "demo", forged.encode())
    with pytest.raises(PeerRefused):  # not even where the "public key" is that secret
        SignedClaim(b"a secret key for tests, long enough for HS256").check(KEY, "demo", forged.encode())
    with pytest.raises(PeerRefused):
        rule(algorithm).check(KEY, "demo", token("", "none", **claims).encode())


def test_a_claim_signed_by_somebody_else_is_refused() -> None:
    for signer in SIGNERS:
        for verifier in SIGNERS:
            if signer != verifier:
                with pytest.raises(PeerRefused):
                    rule(verifier).check(KEY, "demo", signed(signer).encode())


def test_the_first_peer_is_remembered_and_another_refused(tmp_path: Path) -> None:
    known = KnownPeers(tmp_path / "deep" / "known_peers")
    known.check(KEY, "demo", b"")
    known.accepted(KEY, "demo")
    known.accepted(KEY, "demo")
    known.check(KEY, "demo", b"")
    with pytest.raises(PeerRefused, match="HAS CHANGED"):
        known.check(OTHER, "demo", b"")
    known.check(OTHER, "another session", b"")
    assert known.path.read_text() == f"demo {fingerprint(KEY)}\n"
    assert stat.S_IMODE(known.path.stat().st_mode) == 0o600


def test_a_peer_that_was_only_looked_at_is_not_remembered(tmp_path: Path) -> None:
    known = KnownPeers(tmp_path / "known_peers")
    known.check(KEY, "demo", b"")
    known.check(OTHER, "demo", b"")


def test_a_peer_with_a_name_is_the_same_in_every_session(tmp_path: Path) -> None:
    known = KnownPeers(tmp_path / "known_peers", "laptop")
    known.accepted(KEY, "one")
    with pytest.raises(PeerRefused, match="laptop"):
        known.check(OTHER, "two", b"")


def test_a_name_that_would_break_the_file_is_refused(tmp_path: Path) -> None:
    for name in ("two words", "line\n", "a\nb"):
        with pytest.raises(ValueError, match="no blanks"):
            KnownPeers(tmp_path / "known_peers", name)


def test_a_broken_line_is_not_a_new_peer(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    path.write_text("demo\n")
    with pytest.raises(KeyFileError):
        KnownPeers(path).check(KEY, "demo", b"")
    path.write_bytes(b"\xff\n")
    with pytest.raises(KeyFileError):
        KnownPeers(path).check(KEY, "demo", b"")


def test_what_is_no_key_is_an_error_and_stays(tmp_path: Path) -> None:
    for content in (b"no key", private_pem("EdDSA").encode()):
        path = tmp_path / "key.pem"
        path.write_bytes(content)
        with pytest.raises(KeyFileError):
            own_key(path)
        assert path.read_bytes() == content


def test_only_a_token_that_vouches_for_our_key_is_shown_to_the_peer() -> None:
    good = signed("ES256")
    assert vouching(good, KEY, "demo") == good.encode()
    assert vouching("", KEY, "demo") == b""
    for bad in (
        signed("ES256", noise_key=fingerprint(OTHER)),
        signed("ES256", noise_key=None),
        signed("ES256", session_id="other"),
        signed("ES256", session_id=None),
        signed("ES256", token_type=None),
        signed("ES256", token_type="access"),
        token(token_type="vouching", session_id="demo", noise_key=fingerprint(KEY)),
        "no token",
    ):
        with pytest.raises(ValueError, match="vouching token"):
            vouching(bad, KEY, "demo")


def test_a_token_says_what_it_is_for() -> None:
    assert claims_of(token(session_id="demo"))["session_id"] == "demo"
    assert "session_id" not in claims_of(token())
    assert claims_of("no token") == {}


def test_a_fingerprint_is_what_openssl_and_base64_give() -> None:
    key = X25519PrivateKey.from_private_bytes(bytes([7]) * 32).public_key().public_bytes_raw()
    assert len(fingerprint(key)) == len("SHA256:") + 43
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
