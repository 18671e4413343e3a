"""Promises of `relay.rules.units`: figures as people read them."""

from datetime import datetime, timedelta, timezone

import pytest

from relay.rules.units import human_bytes, human_duration, human_moment

KIB = 1024


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (-1023, "-1023 B"),
        (KIB, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (-1536, "-1.5 KiB"),
        (KIB**2 - 1, "1.0 MiB"),  # not 1024.0 KiB
        (KIB**3, "1.0 GiB"),
        (KIB**4, "1.0 TiB"),
        (KIB**5, "1.0 PiB"),
        (2000 * KIB**5, "2000.0 PiB"),
    ],
)
def test_bytes_are_told_in_the_largest_unit_that_leaves_one(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.25, "3.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_a_duration_has_two_parts_at_most(seconds, text):
    assert human_duration(seconds) == text


def test_a_moment_is_told_in_utc_to_the_second():
    east = timezone(timedelta(hours=2))
    assert human_moment(datetime(2026, 11, 3, 14, 0, 5, 999_000, tzinfo=east)) == "2026-11-03 12:00:05"
