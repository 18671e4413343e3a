"""Bytes, durations and moments as people read them."""

from datetime import UTC, datetime

UNITS = ("KiB", "MiB", "GiB", "TiB")


def human_bytes(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1 of it: `1.5 MiB`."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in UNITS:
        value /= 1024
        if abs(value) < 1023.95:  # which would show as 1024.0
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def human_duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `2 min 05 s` or `3.2 s`."""
    if seconds < 59.95:  # which would show as 60.0
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def human_moment(moment: datetime) -> str:
    """A moment (aware) in UTC, to the second: `2026-11-03 12:00:05`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
