"""What a session had relayed when: a few points of a curve, kept small however long it lasts."""

from array import array

Point = tuple[int, int, int]
"""Milliseconds since the session was opened, bytes so far from client to server, and the other way."""

MOST_POINTS = 60
"""More than a chart on a screen shows apart; 1.4 kB in memory, about as much in the record."""


class Traffic:
    """The points of one session, noted now and then with figures that only grow."""

    __slots__ = ("_apart_ms", "_flat")

    def __init__(self) -> None:
        self._flat = array("q")
        self._apart_ms = 1

    def note(self, point: Point) -> None:
        """Keep `point`, unless it's too close to the one before.

        When there are too many, every second one goes, and those to come are as far apart as the rest.
        """
        flat = self._flat
        if flat and point[0] - flat[-3] < self._apart_ms:
            return
        flat.extend(point)
        if len(flat) > 3 * MOST_POINTS:
            points = self._points()[1::2]
            self._flat = array("q", (value for point in points for value in point))
            self._apart_ms = max(1, (points[-1][0] - points[0][0]) // (len(points) - 1))

    def until(self, last: Point) -> tuple[Point, ...]:
        """All points, `last` included as the last one."""
        points = self._points()
        while points and points[-1][0] >= last[0]:
            points.pop()
        return (*points, last)

    def _points(self) -> list[Point]:
        flat = self._flat
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
