"""Promises of `relay.rules.closing`."""

import pytest

from relay.rules.closing import MAX_REASON_BYTES, Close, CloseReason, clip

CODES = {
    "unauthorized": 4401,
    "forbidden": 4403,
    "wait_timeout": 4408,
    "session_full": 4409,
    "peer_lost": 4410,
    "replaced": 4411,
    "idle_timeout": 4412,
    "stalled": 4413,
    "expired": 4414,
    "link_lost": 4415,
    "quota_exceeded": 4429,
    "closed_by_operator": 4499,
    "message_too_big": 1009,
    "restarting": 1012,
    "unavailable": 1013,
}


@pytest.mark.parametrize(("word", "code"), CODES.items())
def test_the_outside_may_rely_on_each_close_code(word, code):
    assert CloseReason(word).code == code


@pytest.mark.parametrize("reason", CloseReason)
def test_each_reason_says_its_word_and_what_happened_within_a_close_frame(reason):
    close = Close.because(reason)
    assert close.code == reason.code
    assert close.text == f"{reason}: {reason.sentence}"
    assert len(close.text.encode()) <= MAX_REASON_BYTES


def test_a_detail_takes_the_place_of_the_standard_sentence():
    assert Close.because(CloseReason.FORBIDDEN, "not for you").text == "forbidden: not for you"


def test_the_code_and_text_of_a_peer_are_passed_on_unchanged():
    assert Close.by_peer(4321, "tschüss") == Close(CloseReason.PEER_LEFT, 4321, "tschüss")


def test_a_close_without_a_code_is_passed_on_as_a_normal_one():
    assert Close.by_peer(1005, "").code == 1000


def test_a_long_text_is_cut_between_characters():
    cut = clip("ü" * 100)
    assert cut == "ü" * 61
    assert len(cut.encode()) <= MAX_REASON_BYTES


@pytest.mark.parametrize("close", [Close.by_peer(4001, "bye"), Close.because(CloseReason.STALLED)])
def test_a_close_travels_to_another_node_and_stays_what_it_is(close):
    assert Close.from_dict({**close.as_dict(), "and": "more"}) == close
