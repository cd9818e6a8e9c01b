"""Medians, quantiles and ratios of samples. Pure.

A failed start is an infinite sample, so every function here takes infinities: a peer that fails
now and then has a worse p99, one that fails every other time has no median. Ratios are those of
statistics over samples that were taken side by side, with a bootstrap interval over blocks
(Efron, "Bootstrap methods", 1979; the percentile method).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "bootstrap", "geometric_mean", "median", "quantile", "ratio", "slope"]

ROUNDS = 2000
CONFIDENCE = 0.95
SEED = 1  # the same samples give the same report
Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; both ends are the value where there is nothing to resample."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> float:
    """The median; infinite when half of the samples are. Raises StatisticsError without samples."""
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed (nearest rank).

    It never invents a value between samples: with few of them p99 is the largest.
    Raises ValueError without samples.
    """
    if not values:
        raise ValueError("no samples")
    rank = math.ceil(share * len(values) - 1e-9)
    return sorted(values)[max(rank, 1) - 1]


def ratio(ours: float, theirs: float) -> float:
    """`ours / theirs`; infinite whenever ours is, so that a failure never flatters us."""
    if math.isinf(ours):
        return math.inf
    if math.isinf(theirs):
        return 0.0
    if theirs == 0:
        return 1.0 if ours == 0 else math.inf
    return ours / theirs


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of ratios; infinite when one is."""
    if any(math.isinf(value) for value in values):
        return math.inf
    return math.exp(statistics.fmean(math.log(value) for value in values))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of y on x. Raises StatisticsError for fewer than two x."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def bootstrap(statistic: Callable[..., float], *samples: Sequence[float]) -> Estimate:
    """`statistic(*samples)` with its 95 % interval, resampling blocks.

    Samples of one length were taken side by side and are resampled together; otherwise each is
    resampled by itself. The result depends on nothing but the samples.
    """
    value = statistic(*samples)
    if max(map(len, samples)) < 2:
        return Estimate(value, value, value)
    chooser = random.Random(SEED)
    paired = len({len(sample) for sample in samples}) == 1
    found = []
    for _ in range(ROUNDS):
        picks = [chooser.randrange(len(samples[0])) for _ in samples[0]]
        drawn = []
        for sample in samples:
            if not paired:
                picks = [chooser.randrange(len(sample)) for _ in sample]
            drawn.append([sample[index] for index in picks])
        found.append(statistic(*drawn))
    found.sort()
    tail = (1 - CONFIDENCE) / 2
    return Estimate(value, found[int(ROUNDS * tail)], found[int(ROUNDS * (1 - tail)) - 1])
