"""Nobody gets in who doesn't belong, and whoever doesn't is told why."""

import base64
import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.behaviour.clients import closed, connect
from tests.rows import booked
from tests.tokens import SECRET_KEY, token


def unsigned(header: dict, **claims) -> str:
    """A token with this header and an empty signature."""
    parts = (header, {"exp": int(time.time()) + 600, "sub": "mallory", **claims})
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts]
    return ".".join([*encoded, ""])


def altered() -> str:
    """A good token whose claims were changed after it was signed."""
    header, _, signature = token(sub="alice").split(".")
    return ".".join([header, unsigned({}).split(".")[1], signature])


BAD_TOKENS = {
    "garbage": ("no.such.token", 4401, "not valid"),
    "alg none": (unsigned({"alg": "none", "typ": "JWT"}), 4401, "not valid"),
    "no signature": (unsigned({"alg": "HS256", "typ": "JWT"}), 4401, "not valid"),
    "another key": (token(key="another key, that is long enough for HS256"), 4401, "not valid"),
    "another algorithm": (token(algorithm="HS512", key=SECRET_KEY * 2), 4401, "not valid"),
    "asymmetric": (
        token(algorithm="RS256", key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        4401,
        "not valid",
    ),
    "altered claims": (altered(), 4401, "not valid"),
    "expired": (token(exp=int(time.time()) - 1), 4401, "expired"),
    "no expiry": (token(exp=None), 4401, "exp"),
    "not yet valid": (token(nbf=int(time.time()) + 43_200), 4401, "not valid"),
    "infinite expiry": (token(exp=float("inf")), 4401, "not valid"),
    "refresh token": (token(token_type="refresh"), 4401, "access"),
    "subject with NUL": (token(sub="a\x00b"), 4401, "sub"),
    "another session": (token(session_id="another"), 4403, "another session"),
    "unknown role": (token(role="admin"), 4403, "role"),
    "too long": (token(padding="x" * 3000), 4401, "longer than 4096 bytes"),
    "nested brackets": (base64.urlsafe_b64encode(b"[" * 2500).decode() + ".e30.e30", 4401, "not valid"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_is_refused_with_a_reason(relay, session_id, name):
    bad, code, words = BAD_TOKENS[name]
    async with connect(relay, session_id, bad) as socket:
        told = await closed(socket)
    assert told[0] == code
    assert words in told[1]
    assert told[1].startswith({4401: "unauthorized: ", 4403: "forbidden: "}[code])


async def test_without_a_token_the_client_is_told_where_to_put_one(relay, session_id):
    async with connect(relay, session_id, additional_headers={}) as socket:
        code, reason = await closed(socket)
    assert code == 4401
    assert "Authorization: Bearer" in reason


async def test_other_authorization_schemes_are_no_token(relay, session_id):
    async with connect(relay, session_id, additional_headers={"Authorization": f"Basic {token()}"}) as socket:
        assert (await closed(socket))[0] == 4401


async def test_a_refused_leg_does_not_touch_the_session(relay, session_id):
    async with connect(relay, session_id) as client:
        async with connect(relay, session_id, "bad") as intruder:
            assert (await closed(intruder))[0] == 4401
        async with connect(relay, session_id) as server:
            await client.send("hi")
            assert await server.recv() == "hi"
    await booked(relay, session_id, to_server=["hi"], to_client=[])


async def test_the_token_may_stand_in_the_header(relay, session_id):
    async with connect(
        relay, session_id, additional_headers={"Authorization": f"bearer {token()}"}
    ) as socket:
        await (await socket.ping())
        assert socket.subprotocol is None


async def test_the_token_may_stand_in_the_query(relay, session_id):
    async with connect(relay, f"{session_id}?x=1&token={token()}", additional_headers={}) as socket:
        await (await socket.ping())


async def test_the_token_may_stand_in_a_subprotocol_and_is_never_the_one_chosen(relay, session_id):
    offered = ["lem.relay.v1", f"bearer.{token()}"]
    async with connect(relay, session_id, additional_headers={}, subprotocols=offered) as socket:
        await (await socket.ping())
        assert socket.subprotocol == "lem.relay.v1"


async def test_a_client_that_is_refused_still_gets_its_subprotocol(relay, session_id):
    """A browser fails the connection otherwise, and never shows the code."""
    offered = ["lem.relay.v1", "bearer.bad"]
    async with connect(relay, session_id, additional_headers={}, subprotocols=offered) as socket:
        assert socket.subprotocol == "lem.relay.v1"
        assert (await closed(socket))[0] == 4401


async def test_tokens_of_simplejwt_itself_pass(relay, session_id):
    from rest_framework_simplejwt.tokens import AccessToken

    own = AccessToken()
    own["user_id"] = "17"
    async with connect(relay, session_id, token(**own.payload)) as socket:
        await (await socket.ping())


async def test_a_refresh_token_of_simplejwt_does_not(relay, session_id):
    from rest_framework_simplejwt.tokens import RefreshToken

    async with connect(relay, session_id, token(**RefreshToken().payload)) as socket:
        code, reason = await closed(socket)
    assert code == 4401
    assert "access" in reason


async def test_no_token_and_no_query_is_ever_logged(relay, session_id):
    secret = token(session_id=session_id)
    for jwt in (secret, secret + "x"):
        async with connect(relay, f"{session_id}?token={jwt}", additional_headers={}) as socket:
            await (await socket.ping()) if jwt == secret else await closed(socket)
    await relay.session_closed(session_id)
    assert secret not in relay.output()
    assert "token=" not in relay.output()
