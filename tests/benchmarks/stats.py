"""The few statistics of the tables: medians, percentiles, and ratios that drift of the machine can't bend."""

import math
from collections.abc import Sequence
from statistics import median


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0 to 1) of them do not exceed (nearest rank)."""
    if not values:
        raise ValueError("a percentile of nothing")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected 0 to 1")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median of ours/theirs over the repetitions that both have; None where there is none.

    The two of one repetition were measured moments apart, so that a machine that is slow for a minute slows
    both: the median of their ratios is steadier than the ratio of their medians.
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]
    return median(ratios) if ratios else None


def spread(values: Sequence[float]) -> float:
    """How far the values lie apart, as a share of their median: (max - min) / median."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0
