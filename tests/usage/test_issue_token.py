"""`issue_token`: a token, a newline and nothing else; or one line that says what to do instead."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.core.management import CommandError, call_command

KEY = "a key of more than thirty-two bytes, as HS256 wants"


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", "issue_token", *args],
        env={**os.environ, "SECRET_KEY": KEY, "PYTHONWARNINGS": "error", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def claims(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, "")
    token = done.stdout.removesuffix("\n")
    assert token.count(".") == 2
    assert token.isprintable()
    return jwt.decode(token, KEY, algorithms=["HS256"])


def test_a_token_carries_what_was_asked_for() -> None:
    given = claims(
        run(
            *("--session", "demo.1_~-", "--role", "server", "--account", "acme"),
            *("--subject", "anna", "--lifetime", "60"),
        )
    )
    assert given.pop("exp") == pytest.approx(time.time() + 60, abs=30)
    assert given.pop("iat") == pytest.approx(time.time(), abs=30)
    assert len(given.pop("jti")) == 32
    assert given == {
        "token_type": "access",
        "user_id": "anna",
        "session_id": "demo.1_~-",
        "role": "server",
        "account_id": "acme",
    }


def test_a_plain_token_is_for_any_session_and_for_someone_new_each_time() -> None:
    first, second = claims(run()), claims(run())
    assert first.keys() == {"token_type", "user_id", "exp", "iat", "jti"}
    assert first["user_id"] != second["user_id"]
    assert first["exp"] - first["iat"] == 3600


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--session", "a b"), "--session: expected 1 to 128"),
        (("--session", ""), "--session: expected 1 to 128"),
        (("--session", "x" * 129), "--session: expected 1 to 128"),
        (("--session", "demo\n"), "--session: expected 1 to 128"),
        (("--lifetime", "0"), "--lifetime: expected 1 to 2678400"),
        (("--lifetime", "2678401"), "--lifetime: expected 1 to 2678400"),
    ],
)
def test_what_cannot_be_issued_is_one_line_and_status_2(args: tuple[str, ...], says: str) -> None:
    done = run(*args)
    [line] = done.stderr.splitlines()
    assert says in line
    assert (done.returncode, done.stdout) == (2, "")


def test_with_only_a_public_key_it_points_to_the_signaling_server(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = tmp_path / "public.pem"
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = run(RELAY_JWT_ALGORITHM="ES256", RELAY_JWT_PUBLIC_KEY_FILE=str(pem))
    [line] = done.stderr.splitlines()
    assert "signaling server" in line
    assert (done.returncode, done.stdout) == (2, "")


def issued(**options: Any) -> dict[str, Any]:
    """The claims of a token that is made in this process."""
    out = io.StringIO()
    call_command("issue_token", stdout=out, **options)
    return dict(jwt.decode(out.getvalue().strip(), settings.SECRET_KEY, algorithms=["HS256"]))


def test_each_claim_is_what_was_asked_for_and_no_other_is_there() -> None:
    asked = {"session": "demo", "role": "client", "account": "acme", "subject": "anna"}
    given = issued(**asked, lifetime=60)
    assert given["exp"] - given["iat"] == 60
    names = ("session_id", "role", "account_id", "user_id", "token_type")
    assert [given[name] for name in names] == ["demo", "client", "acme", "anna", "access"]
    assert given.keys() == {*names, "exp", "iat", "jti"}
    for absent in ("session", "role", "account"):
        rest = issued(**{name: value for name, value in asked.items() if name != absent})
        assert given.keys() - rest.keys() == {"role" if absent == "role" else f"{absent}_id"}


def test_the_longest_lifetime_and_the_longest_session_id_are_taken() -> None:
    given = issued(lifetime=31 * 86_400, session="x" * 128)
    assert given["exp"] - given["iat"] == 31 * 86_400
    assert given["session_id"] == "x" * 128
    for bad in (
        {"lifetime": 31 * 86_400 + 1},
        {"lifetime": 0},
        {"session": "x" * 129},
        {"session": "demo\n"},
    ):
        with pytest.raises(CommandError, match="expected 1 to") as error:
            issued(**bad)
        assert error.value.returncode == 2


def test_two_tokens_without_a_subject_are_two_peoples() -> None:
    one, other = issued(), issued()
    assert one["user_id"] != other["user_id"]
    assert one["jti"] != other["jti"]
