"""Flow control without I/O: how many bytes wait, and when a sender has to pause or may go on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaterMarks:
    """Bounds of one queue in bytes: above `high` its feeder pauses, at `low` or below it goes on.

    Two marks instead of one, so that a queue near its bound doesn't pause and resume on each frame.
    """

    high: int
    low: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"water marks need 0 <= low <= high, not low={self.low}, high={self.high}")


class Gauge:
    """Counts the bytes that wait in one queue and says when its feeder has to pause or go on.

    The queue may exceed the high mark by one item, the one that crossed it: an item is never cut.
    """

    __slots__ = ("level", "marks", "paused")

    def __init__(self, marks: WaterMarks) -> None:
        self.marks = marks
        self.level = 0
        self.paused = False

    def add(self, size: int) -> bool:
        """`size` bytes joined the queue. True if the feeder has to pause now (said once until it resumes)."""
        self.level += size
        if self.paused or self.level <= self.marks.high:
            return False
        self.paused = True
        return True

    def remove(self, size: int) -> bool:
        """`size` bytes left the queue. True if the feeder may go on now (said once for each pause)."""
        if size > self.level:
            raise ValueError(f"{size} bytes can't leave a queue that holds {self.level}")
        self.level -= size
        if not self.paused or self.level > self.marks.low:
            return False
        self.paused = False
        return True
