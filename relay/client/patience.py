"""How long to try again what fails time after time, and how long to wait before each; without a clock."""

import random
from typing import Final

STEADY: Final = 10.0
"""Seconds. A connection that held for longer was a good one: its end begins a new count."""
FIRST_PAUSE: Final = 0.25
LAST_PAUSE: Final = 5.0
"""Seconds between two attempts, from the first pause to the longest, of which each is a random part."""


class Patience:
    """Worn out by failures in a row for `seconds`, counted from the end of the first; 0 is one attempt."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._pause = FIRST_PAUSE

    @property
    def untried(self) -> bool:
        """Whether nothing has failed yet."""
        return self._since is None

    def failed(self, now: float, held: float) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        One has just failed, at `now` (seconds of any clock), its connection having held for `held` seconds.
        """
        if self._since is None or held > STEADY:
            self._since, self._pause = now, FIRST_PAUSE
        left = self._since + self._seconds - now
        if left <= 0:
            return None
        # Spread out: all who were sent away by one restart don't return in one moment.
        pause = min(left, self._pause * random.uniform(0.5, 1.0))  # noqa: S311
        self._pause = min(2 * self._pause, LAST_PAUSE)
        return pause
