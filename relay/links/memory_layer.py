"""The channel layer of a single process."""

import time

from channels.layers import InMemoryChannelLayer

CLEAN_SECONDS = 1.0
"""Between two looks for what has expired, which takes a minute or a day to do so."""


class MemoryChannelLayer(InMemoryChannelLayer):  # type: ignore[misc] # Channels has no types
    """Channels' own, but for when it looks for messages and members of groups that have expired.

    That one goes through all of them each time somebody receives: joins would cost more with each leg that
    is there, milliseconds with thousands.
    """

    _clean_at = float("-inf")

    def _clean_expired(self) -> None:
        now = time.monotonic()
        if now >= self._clean_at:
            self._clean_at = now + CLEAN_SECONDS
            super()._clean_expired()
