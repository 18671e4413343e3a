"""The curve of a session's traffic: few points, which never say more than was."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relay.rules.traffic import MOST_POINTS, Traffic

steps = st.lists(
    st.tuples(st.integers(0, 100_000), st.integers(0, 2**40), st.integers(0, 2**40)), max_size=400
)


@given(steps)
def test_points_are_few_and_are_some_of_those_that_were_noted_in_order(given_steps) -> None:
    traffic, at, noted = Traffic(), (0, 0, 0), []
    for step in given_steps:
        at = tuple(before + more for before, more in zip(at, step, strict=True))
        traffic.note(at)
        noted.append(at)
    points = traffic.until(at)
    assert len(points) <= MOST_POINTS + 1
    assert points[-1] == at
    assert set(points[:-1]) <= set(noted)
    moments = [point[0] for point in points]
    assert moments == sorted(set(moments))


def test_a_long_session_has_points_all_along() -> None:
    traffic = Traffic()
    for second in range(100_000):
        traffic.note((1000 * second, second, 2 * second))
    points = traffic.until((100_000_000, 100_000, 200_000))
    gaps = [after[0] - before[0] for before, after in pairwise(((0, 0, 0), *points))]
    assert len(points) > MOST_POINTS / 3
    assert max(gaps) < 6 * 100_000_000 / MOST_POINTS


def test_at_no_moment_are_there_more_points_than_a_chart_shows() -> None:
    traffic = Traffic()
    for second in range(1000):
        traffic.note((1000 * second, second, second))
        assert len(traffic.until((1000 * second + 1, second, second))) <= MOST_POINTS + 1


def test_the_end_takes_the_place_of_what_was_noted_at_its_moment() -> None:
    traffic = Traffic()
    traffic.note((10, 1, 1))
    traffic.note((20, 2, 2))
    assert traffic.until((20, 3, 3)) == ((10, 1, 1), (20, 3, 3))
