"""Records and the line: exact, whatever they are given."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from relay.ledger import log_line, milliseconds
from relay.ledger.records import iso, merge, rest_of
from tests.usage.samples import START, ended, leg, live, uuid


def test_the_log_line_has_exactly_the_names_and_forms_that_the_outside_relies_on() -> None:
    record = ended(7, session_id="demo", timestamp=datetime(2026, 11, 3, 12, 0, 5, 678_999, tzinfo=UTC))
    assert log_line(record) == (
        '{"event": "session_closed", "session_id": "demo", "duration_seconds": 0.3, '
        '"bytes_client_to_server": 1007, "bytes_server_to_client": 2000, "total_bytes": 3007, '
        '"timestamp": "2026-11-03T12:00:05.678Z", "session_uuid": "00000000-0000-0000-0000-000000000007", '
        '"account_id": "acme", "reason": "peer_left", "waiting_seconds": 0.1, "paired_seconds": 0.2, '
        '"frames_client_to_server": 3, "frames_server_to_client": 4}'
    )


def test_a_line_is_one_line_of_ascii_without_an_account_or_with_a_strange_one() -> None:
    assert '"account_id": null' in log_line(ended(account_id=None))
    line = log_line(ended(account_id="a\nb\u2028\u00e9"))
    assert line.isascii()
    assert "\n" not in line


def test_waiting_and_paired_add_up_to_the_duration() -> None:
    for waiting in range(1000):
        record = ended(waiting_ms=waiting, paired_ms=200)
        assert round(record.duration_seconds * 1000) == waiting + 200
        assert len(str(record.duration_seconds).partition(".")[2]) <= 3


def test_durations_are_rounded_once_and_never_negative() -> None:
    assert milliseconds(1.2346) == 1235
    assert milliseconds(-0.5) == 0


def test_times_are_cut_to_the_millisecond_and_kept_in_utc() -> None:
    berlin = datetime(2026, 11, 3, 13, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=1)))
    record = ended(timestamp=berlin)
    assert record.timestamp == datetime(2026, 11, 3, 12, 0, 0, 999_000, tzinfo=UTC)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="started_at"):
        live(started_at=datetime(2026, 11, 3))


@pytest.mark.parametrize("fields", [{"reason": "peer_left"}, {"timestamp": START}])
def test_an_end_has_both_a_time_and_a_reason(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="both"):
        live(**fields)


def test_text_that_no_database_takes_is_made_fit() -> None:
    record = leg(subject="a\0b\ud800c" + "x" * 300, close_reason="é" * 200)
    assert record.subject.startswith("a\ufffdb?cx")
    assert len(record.subject) == 255
    assert len(record.close_reason) == 123


def test_what_has_ended_wins_over_what_comes_later() -> None:
    closed = ended(legs=(leg(1, left_at=START, close_code=1000), leg(2)))
    late = live(bytes_client_to_server=5, legs=(leg(1), leg(2, left_at=START, close_code=4410), leg(3)))
    merged = merge(closed, late)
    assert merged.timestamp == closed.timestamp
    assert merged.bytes_client_to_server == closed.bytes_client_to_server
    assert [(one.leg_uuid, one.close_code) for one in merged.legs] == [
        (uuid(1), 1000),
        (uuid(2), 4410),
        (uuid(3), None),
    ]


def test_the_newer_state_of_a_live_session_wins() -> None:
    assert merge(live(), live(bytes_client_to_server=9)).bytes_client_to_server == 9
    assert merge(live(), ended()).closed
    assert merge(None, live()) == live()


def test_what_ended_of_a_live_session_wins_over_what_comes_later() -> None:
    left = live(legs=(leg(1, left_at=START, close_code=1000), leg(2)))
    merged = merge(left, live(bytes_client_to_server=5, legs=(leg(1), leg(2))))
    assert merged.bytes_client_to_server == 5
    assert [one.close_code for one in merged.legs] == [1000, None]


def test_a_leg_that_a_newer_state_has_no_more_is_not_forgotten() -> None:
    merged = merge(live(legs=(leg(1), leg(2))), live(bytes_client_to_server=5, legs=(leg(1),)))
    assert [one.leg_uuid for one in merged.legs] == [uuid(1), uuid(2)]


def test_only_the_node_that_owns_a_session_closes_it() -> None:
    with pytest.raises(ValueError, match="the node that owns it"):
        ended(owned=False)


def test_the_rest_of_a_session_is_what_others_did_not_know_of_and_never_negative() -> None:
    settled = ended(
        reason="node_lost",
        bytes_client_to_server=400,
        bytes_server_to_client=5000,
        waiting_ms=100,
        paired_ms=900,
    )
    rest = rest_of(ended(bytes_client_to_server=1000, legs=(leg(1),)), settled)
    assert rest is not None
    assert (rest.bytes_client_to_server, rest.bytes_server_to_client) == (600, 0)
    assert (rest.waiting_ms, rest.paired_ms, rest.legs, rest.traffic) == (0, 0, (), ())
    assert rest.session_uuid not in (uuid(1), rest_of(ended(2), settled).session_uuid)
    assert rest_of(ended(bytes_client_to_server=1000), settled) == rest


def test_the_rest_of_a_live_session_is_told_only_where_something_passed() -> None:
    settled = ended(reason="node_lost", bytes_client_to_server=400, bytes_server_to_client=0)
    assert rest_of(live(bytes_client_to_server=400, paired_ms=9000), settled) is None
    rest = rest_of(live(bytes_client_to_server=401), settled)
    assert rest is not None
    assert rest.bytes_client_to_server == 1


def test_the_rest_of_a_session_that_has_ended_is_told_even_where_nothing_passed() -> None:
    """It says how the session ended, which nobody else knows."""
    rest = rest_of(ended(), ended(reason="node_lost"))
    assert rest is not None
    assert (rest.reason, rest.total_bytes) == ("peer_left", 0)


def test_a_moment_of_any_zone_is_printed_in_utc() -> None:
    berlin = datetime(2026, 11, 3, 0, 30, 0, 7_000, tzinfo=timezone(timedelta(hours=1)))
    assert iso(berlin) == "2026-11-02T23:30:00.007Z"
