"""Promises of `relay.entry.tokens`: where a token may stand, and what becomes of a bad one."""

import base64
import time
from typing import Any

import jwt
import pytest
from rest_framework_simplejwt.state import token_backend

from relay import conf
from relay.entry.tokens import TokenMiddleware, token_of
from relay.rules.closing import CloseReason
from relay.rules.grants import SCOPE_KEY, Grant, Refused

HEADER, SUBPROTOCOL, QUERY = "from.the.header", "from.the.subprotocol", "from.the.query"


def scope(
    *, header: str | None = None, subprotocols: tuple[str, ...] = (), query: str = "", **more: Any
) -> dict[str, Any]:
    """An upgrade request as a server tells of it."""
    headers = [(b"host", b"relay"), (b"x-authorization", b"Bearer nobody's")]
    if header is not None:
        headers.append((b"authorization", header.encode()))
    return {
        "type": "websocket",
        "headers": headers,
        "subprotocols": list(subprotocols),
        "query_string": query.encode(),
        **more,
    }


async def outcome(request: dict[str, Any]) -> Grant | Refused:
    """What the application finds in its scope."""
    got: dict[str, Any] = {}

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        got.update(scope)

    await TokenMiddleware(application)(request, None, None)
    assert SCOPE_KEY not in request, "the server's own scope stays as it was"
    assert {key: got[key] for key in request} == request
    return got[SCOPE_KEY]


def signed(**claims: Any) -> str:
    """A token that is good here."""
    claims = {"exp": int(time.time()) + 600, **claims}
    return jwt.encode(claims, token_backend.signing_key, token_backend.algorithm)


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ({"header", "subprotocol", "query"}, HEADER),
        ({"header", "subprotocol"}, HEADER),
        ({"header", "query"}, HEADER),
        ({"subprotocol", "query"}, SUBPROTOCOL),
        ({"query"}, QUERY),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(sorted(value)),
)
def test_of_three_tokens_the_header_comes_first_then_the_subprotocol_then_the_query(places, found):
    request = scope(
        header=f"Bearer {HEADER}" if "header" in places else None,
        subprotocols=("lem.relay.v1", f"bearer.{SUBPROTOCOL}", "bearer.another")
        if "subprotocol" in places
        else (),
        query=f"x=1&token={QUERY}&token=another" if "query" in places else "",
    )
    assert token_of(request) == found.encode()


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "", "from.the.header"])
def test_a_header_without_a_bearer_token_leaves_the_other_places_to_be_looked_at(header):
    assert token_of(scope(header=header, query=f"token={QUERY}")) == QUERY.encode()


@pytest.mark.parametrize("header", ["bearer", "BEARER", "Bearer"])
def test_the_scheme_is_read_in_any_case_and_the_space_around_a_token_is_not_part_of_it(header):
    assert token_of(scope(header=f"{header}   {HEADER} ")) == HEADER.encode()


def test_an_empty_subprotocol_token_leaves_the_query_to_be_looked_at():
    assert token_of(scope(subprotocols=("bearer.",), query=f"token={QUERY}")) == QUERY.encode()


def test_a_token_in_a_query_is_decoded_as_queries_are():
    assert token_of(scope(query="token=a%2Eb%2Ec")) == b"a.b.c"


@pytest.mark.parametrize("query", ["", "token", "token=", "Token=x", "x=token"])
def test_without_a_token_one_is_told_where_to_put_it(query):
    with pytest.raises(Refused) as caught:
        token_of(scope(query=query))
    assert caught.value.close.code == 4401
    assert "?token=" in caught.value.close.text


def test_a_server_that_tells_neither_subprotocols_nor_query_has_no_token():
    with pytest.raises(Refused):
        token_of({"type": "websocket", "headers": []})


@pytest.mark.parametrize("place", ["header", "subprotocol", "query"])
def test_the_longest_token_passes_and_one_byte_more_is_refused_wherever_it_stands(place):
    longest = "x" * conf.current().max_token_bytes

    def put(token: str) -> dict[str, Any]:
        return {
            "header": scope(header=f"Bearer {token}"),
            "subprotocol": scope(subprotocols=(f"bearer.{token}",)),
            "query": scope(query=f"token={token}"),
        }[place]

    assert token_of(put(longest)) == longest.encode()
    with pytest.raises(Refused) as caught:
        token_of(put(longest + "x"))
    assert caught.value.close.reason is CloseReason.UNAUTHORIZED


async def test_a_good_token_becomes_a_grant():
    token = signed(user_id="u1", account_id="acme", jti="j")
    assert await outcome(scope(header=f"Bearer {token}")) == Grant("u1", "acme", None, None, "j")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("no.such.token", "not valid"),
        ("é", "not valid"),
        (base64.urlsafe_b64encode(b"[" * 2500).decode() + ".e30.e30", "not valid"),
        (signed(exp=int(time.time()) - 1), "expired"),
        (signed(nbf=int(time.time()) + 43_200), "not valid"),
        (signed(exp=float("inf")), "not valid"),
        (signed(token_type="refresh"), "access"),
    ],
    ids=["garbage", "not ASCII", "nested brackets", "expired", "not yet", "infinite expiry", "refresh"],
)
async def test_a_bad_token_is_a_refusal_in_the_scope_and_never_an_error(token, words):
    refused = await outcome(scope(query=f"token={token}"))
    assert isinstance(refused, Refused)
    assert refused.close.code == 4401
    assert words in refused.close.text


async def test_the_refusal_does_not_repeat_what_the_parser_said():
    refused = await outcome(scope(header="Bearer sesame.sesame.sesame"))
    assert isinstance(refused, Refused)
    assert "sesame" not in refused.close.text


@pytest.mark.parametrize("error", [RecursionError, OverflowError, KeyError, MemoryError])
async def test_whatever_a_parser_raises_is_a_bad_token(monkeypatch, error):
    """The one that is installed raises nothing of its own here; not every release of it is so careful."""

    def decode(token: bytes) -> dict[str, Any]:
        raise error("sesame")

    monkeypatch.setattr(type(token_backend), "decode", lambda self, token: decode(token))
    refused = await outcome(scope(header=f"Bearer {HEADER}"))
    assert isinstance(refused, Refused)
    assert refused.close.text == "unauthorized: the token is not valid"
