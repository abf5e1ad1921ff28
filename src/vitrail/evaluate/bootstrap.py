"""Means with bootstrap confidence intervals."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "bootstrap"]


class Interval(NamedTuple):
    """A mean, the ends of its 95 % bootstrap interval, and the number of values it is of."""

    mean: float
    low: float
    high: float
    size: int

    def __str__(self) -> str:
        if not self.size:
            return "–"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]".replace("-", "−")


def bootstrap(values: Iterable[float], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of the values that are not NaN, with its 95 % percentile bootstrap interval (Efron 1979).

    Deterministic from `seed`. Without any value, all is NaN and `size` is 0.

    >>> bootstrap([1.0, 1.0, float("nan")])
    Interval(mean=1.0, low=1.0, high=1.0, size=2)
    """
    known = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    if not len(known):
        return Interval(np.nan, np.nan, np.nan, 0)
    chosen = np.random.default_rng(seed).integers(len(known), size=(resamples, len(known)))
    low, high = np.quantile(known[chosen].mean(axis=1), (0.025, 0.975))
    return Interval(float(known.mean()), float(low), float(high), len(known))
