"""What the console judges as Python does: tokens that vouch for keys, close codes, names of files."""

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Page

from relay.client.connection import COME_BACK, SENTENCES
from relay.client.disk import TransferRefused, safe_name
from relay.client.peers import PeerRefused
from relay.client.reconnecting import DROPPED
from relay.client.wire import fingerprint
from tests.console.test_protocol import page, run
from tests.tokens import token
from tests.unit.test_client_peers import KEY, OTHER, SIGNERS, rule, signed

__all__ = ["page"]

pytestmark = pytest.mark.system

JUDGE = """
    const { SignedClaim, vouching, claimsOf } = await import("/static/relay/console/peers.js");
    const judge = async ({ pem, key, token }) => {
        const rule = new SignedClaim(pem);
        const vouched = new TextEncoder().encode(token);
        return failure(() => rule.check(bytes(key), "demo", vouched));
    };
"""


def judged(page: Page, pem: bytes, vouching: str, key: bytes = KEY) -> str:
    """Why the page refuses `key` with that token; empty where it accepts it."""
    given = {"pem": pem.decode(), "key": key.hex(), "token": vouching}
    return str(run(page, f"{JUDGE} return judge(given);", given))


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_signed_claim_lets_its_key_in_and_nothing_else(page: Page, algorithm: str) -> None:
    pem = rule(algorithm).public_key_pem
    good = signed(algorithm)
    assert judged(page, pem, good) == ""
    assert "another key" in judged(page, pem, good, OTHER)
    header, claims, _ = good.split(".")
    bad = {
        "another session": signed(algorithm, session_id="other"),
        "no session": signed(algorithm, session_id=None),
        "no key": signed(algorithm, noise_key=None),
        "a token that opens the session": signed(algorithm, token_type="access"),
        "no type": signed(algorithm, token_type=None),
        "no expiry": signed(algorithm, exp=None),
        "expired": signed(algorithm, exp=1),
        "not yet": signed(algorithm, nbf=4_000_000_000),
        "a text for an expiry": good.replace(
            claims, base64.urlsafe_b64encode(b'{"exp": "9999999999"}').decode().rstrip("=")
        ),
        "another signature": good[:-6] + "AAAAAA",
        "no signature": f"{header}.{claims}.",
        "the relay's secret": token(token_type="vouching", session_id="demo", noise_key=fingerprint(KEY)),
        "the public key as a secret": hs256_with(pem),
        "no token": "no token",
        "empty": "",
    }
    for name, vouching in bad.items():
        assert judged(page, pem, vouching).startswith("PeerRefused: "), name
        with pytest.raises(PeerRefused):
            rule(algorithm).check(KEY, "demo", vouching.encode())


def hs256_with(pem: bytes) -> str:
    """The attack on verifiers that take the algorithm from the token: the public key as a shared secret."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    header = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    claims = {
        "token_type": "vouching",
        "session_id": "demo",
        "noise_key": fingerprint(KEY),
        "exp": 4_000_000_000,
    }
    body = part(json.dumps(claims).encode())
    seal = hmac.digest(pem, f"{header}.{body}".encode(), hashlib.sha256)
    return f"{header}.{body}.{part(seal)}"


def test_another_signer_and_another_kind_of_key_are_refused(page: Page) -> None:
    strangers = [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
    for stranger in strangers:
        pem = stranger.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for algorithm in SIGNERS:
            assert judged(page, pem, signed(algorithm)).startswith("PeerRefused: ")


def test_only_a_token_that_vouches_for_our_key_and_opens_nothing_is_shown_to_the_peer(page: Page) -> None:
    bad = [
        signed("ES256", noise_key=fingerprint(OTHER)),
        signed("ES256", session_id="other"),
        signed("ES256", token_type=None),
        signed("ES256", token_type="access"),
        token(token_type="vouching", session_id="demo", noise_key=fingerprint(KEY)),
        "nonsense",
    ]
    good = signed("ES256")
    shown, nothing, refused = run(
        page,
        f"""
        {JUDGE}
        const show = (token) => vouching(token, given.fingerprint, "demo");
        const refused = await Promise.all(given.bad.map((token) => failure(async () => show(token))));
        return [show(given.good).length, show("").length, refused];
        """,
        {"good": good, "bad": bad, "fingerprint": fingerprint(KEY)},
    )
    assert (shown, nothing) == (len(good), 0)
    assert [told.partition(":")[0] for told in refused] == ["RuleError"] * len(bad)


def test_each_close_code_has_the_sentence_that_python_has_for_it(page: Page) -> None:
    """And both come back after the same ones."""
    said = run(
        page,
        """
        const module = await import("/static/relay/console/connection.js");
        const other = new module.Closed(4000).message;
        return [module.SENTENCES, [...module.COME_BACK], [...module.DROPPED], other];
        """,
    )
    assert {int(code): sentence for code, sentence in said[0].items()} == SENTENCES
    assert set(said[1]) == COME_BACK
    assert set(said[2]) == DROPPED
    assert said[3] == "the peer left before it was done (close code 4000)"


def test_names_of_files_are_those_that_python_takes(page: Page) -> None:
    names = [
        "a", "a b.txt", "grüße.tar.gz", "x" * 180, "日本語", "👍.png",
        "", ".", "..", ".hidden", "a/b", "a\\b", "a:b", "a*", "a?", 'a"', "a<", "a>", "a|", " a", "a ", "a\n",
        "a\0", "a\x1b[2J", "x" * 181, "é" * 91, "a\u202etxt.exe", "a\u200b", "a\u2028b", "\ufeffa", "\u3000a",
    ]  # fmt: skip
    taken = run(
        page,
        """
        const { safeName } = await import("/static/relay/console/files.js");
        return Promise.all(given.map(async (name) => (await failure(async () => safeName(name))) === ""));
        """,
        names,
    )
    for name, ours in zip(names, taken, strict=True):
        try:
            theirs = bool(safe_name(name))
        except TransferRefused:
            theirs = False
        assert ours == theirs, repr(name)
