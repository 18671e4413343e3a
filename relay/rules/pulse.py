"""Whether the other side of a link is still there, without I/O and without a clock of its own.

Says when to ask the other side for an answer, when it counts as silent, and when nobody is left to answer.
Times are handed in as seconds of a monotonic clock.
"""

FIRST_QUESTION_SECONDS = 0.3
"""How long an answer may take before it's asked for, doubled with each time: some round trips to Redis."""

LONGEST_QUESTION_SECONDS = 2.0
"""Between two questions at most, while there's something that waits for the answer."""

SHORTEST_LOOK_SECONDS = 0.02
LONGEST_LOOK_SECONDS = 1.0
"""Between two looks at the clock: a question is at most that much late."""


class Pulse:
    """What was heard and sent when. `silent_seconds` without a word is the longest a link may last."""

    __slots__ = ("_asked_at", "_heard_at", "_look_at", "_patience", "_sent_at", "_silent_seconds")

    def __init__(self, silent_seconds: float, now: float) -> None:
        self._silent_seconds = silent_seconds
        self._heard_at = now
        self._sent_at = now  # the last message that went out
        self._asked_at: float | None = None  # the first that went out since something was heard
        self._patience = FIRST_QUESTION_SECONDS
        self._look_at = now

    def heard(self, now: float) -> None:
        """A message of the other side came."""
        self._heard_at = now
        self._asked_at = None
        self._patience = FIRST_QUESTION_SECONDS

    def sent(self, now: float) -> None:
        """A message went out."""
        self._sent_at = now
        if self._asked_at is None:
            self._asked_at = now

    def failed(self) -> None:
        """A message could not be sent: what was sent before may not have reached anyone either."""
        self._asked_at = None

    def awake(self, now: float) -> None:
        """The clock is looked at. Call it before the questions below.

        Later than planned means that this process itself was held up: what came meanwhile is not heard yet.
        """
        late = now - self._look_at
        if late > LONGEST_LOOK_SECONDS:
            self._heard_at = min(now, self._heard_at + late)

    def is_silent(self, now: float) -> bool:
        """Whether nothing was heard for the longest time allowed."""
        return now - self._heard_at >= self._silent_seconds

    def is_unanswered(self, now: float) -> bool:
        """Whether messages have gone out for long enough, and still do, without an answer."""
        if self._asked_at is None:
            return False
        long_enough = now - self._asked_at >= self._silent_seconds / 2
        return long_enough and now - self._sent_at <= 2 * LONGEST_QUESTION_SECONDS

    def next_look(self, now: float, urgent: bool) -> tuple[bool, float]:
        """Whether to ask the other side now, and in how many seconds to look again.

        `urgent` while something waits for an answer; else it's only asked so that a dead link shows.
        """
        every = self._patience if urgent else self._silent_seconds / 5
        since = max(self._heard_at, self._sent_at)
        asks = now - since >= every
        if asks:
            since = now
            if urgent:
                every = self._patience = min(2 * self._patience, LONGEST_QUESTION_SECONDS)
        delay = min(max(since + every - now, SHORTEST_LOOK_SECONDS), LONGEST_LOOK_SECONDS)
        self._look_at = now + delay
        return asks, delay
