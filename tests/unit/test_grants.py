"""Promises of `relay.rules.grants`: what the claims of a verified token allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.closing import CloseReason
from relay.rules.grants import MAX_CLAIM_CHARS, Grant, Refused, grant_from_claims, is_session_id
from relay.rules.roles import Role

EXP = {"exp": 2_000_000_000}


def refusal(claims: dict) -> Refused:
    with pytest.raises(Refused) as caught:
        grant_from_claims(claims)
    return caught.value


def test_a_token_with_nothing_but_an_expiry_is_a_grant_without_limits():
    assert grant_from_claims(EXP) == Grant(None, None, None, None, None)


def test_all_claims_are_read():
    claims = {
        **EXP,
        "token_type": "access",
        "user_id": "u1",
        "account_id": "acme",
        "role": "server",
        "session_id": "s~1",
        "jti": "j",
    }
    assert grant_from_claims(claims) == Grant("u1", "acme", Role.SERVER, "s~1", "j")


def test_the_subject_is_the_user_id_claim_and_else_sub():
    assert grant_from_claims({**EXP, "user_id": 7, "sub": "x"}).subject == "7"
    assert grant_from_claims({**EXP, "sub": "x"}).subject == "x"
    assert grant_from_claims({**EXP, "uid": "y", "sub": "x"}, user_id_claim="uid").subject == "y"


def test_a_token_without_an_expiry_is_refused():
    assert refusal({"sub": "x"}).close.code == 4401
    assert "exp" in str(refusal({"sub": "x"}))


@pytest.mark.parametrize("token_type", ["refresh", "sliding", "", None, 1])
def test_only_access_tokens_pass(token_type):
    assert refusal({**EXP, "token_type": token_type}).close.reason is CloseReason.UNAUTHORIZED


@pytest.mark.parametrize("role", ["admin", "CLIENT", 1])
def test_an_unknown_role_is_forbidden(role):
    assert refusal({**EXP, "role": role}).close.code == 4403


@pytest.mark.parametrize("session_id", ["a/b", "ü", "x" * 129, " "])
def test_a_session_claim_outside_the_alphabet_is_refused(session_id):
    assert "session id" in str(refusal({**EXP, "session_id": session_id}))


@pytest.mark.parametrize("name", ["user_id", "sub", "account_id", "jti", "role", "session_id"])
@pytest.mark.parametrize(
    "value", [True, 1.5, ["x"], {"x": 1}, "a\x00b", "a\nb", "\ud800", "x" * (MAX_CLAIM_CHARS + 1)]
)
def test_a_claim_that_no_record_could_hold_is_refused(name, value):
    assert refusal({**EXP, name: value}).close.reason is CloseReason.UNAUTHORIZED


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_claim_counts_as_none(value):
    assert grant_from_claims({**EXP, "account_id": value, "role": value}) == grant_from_claims(EXP)


def test_a_grant_for_one_session_is_forbidden_in_another():
    grant = grant_from_claims({**EXP, "session_id": "mine"})
    grant.check_session("mine")
    for other in ("yours", "mine2", "min", "Mine"):
        with pytest.raises(Refused) as caught:
            grant.check_session(other)
        assert caught.value.close.code == 4403


@pytest.mark.parametrize("name", ["user_id", "sub", "account_id", "jti"])
def test_the_longest_claim_that_a_record_holds_passes(name):
    grant_from_claims({**EXP, name: "x" * MAX_CLAIM_CHARS})


def test_a_grant_without_a_session_may_go_anywhere():
    grant_from_claims(EXP).check_session("anywhere")


@pytest.mark.parametrize("text", ["a", "A-Z.a_z~0", "x" * 128])
def test_session_ids_of_the_alphabet(text):
    assert is_session_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a/b", "é", "a\n", "٣"])
def test_anything_else_is_no_session_id(text):
    assert not is_session_id(text)


@given(st.dictionaries(st.sampled_from(["exp", "sub", "user_id", "role", "jti", "session_id"]), st.text()))
def test_whatever_the_claims_the_answer_is_a_grant_or_a_refusal(claims):
    try:
        outcome: Grant | Refused = grant_from_claims(claims)
    except Refused as refused:
        outcome = refused
    assert isinstance(outcome, Grant) or outcome.close.code in (4401, 4403)
