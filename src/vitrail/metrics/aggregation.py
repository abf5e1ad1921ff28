"""Aggregation over a data set: from one number per image to one with its bootstrap confidence interval."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

__all__ = ["LEVEL", "RESAMPLES", "Curves", "Interval", "Statistic", "bootstrap", "draws", "weightings"]

RESAMPLES = 2000
LEVEL = (0.025, 0.975)  # the quantiles that are the ends of an interval
HELD = 2**21  # numbers that are drawn at a time: 16 MB, however many images there are


class Statistic(NamedTuple):
    """A mean of quotients of sums over images: mean_p( Σ_i numerator[i, p] / Σ_i denominator[i, p] ).

    A plain mean over images has one part and `denominator` 1 (0 where an image does not count); a measure that is
    accumulated over the data set (pixel accuracy, intersection over union) has its counts. `better`: 1 where high is
    good, −1 where low is, 0 where neither.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    better: int = 1

    @classmethod
    def mean(cls, values: Sequence[float] | np.ndarray, better: int = 1) -> "Statistic":
        """Returns the mean of one value per image; NaN where an image does not count.

        Example:
            >>> Statistic.mean([1.0, float("nan"), 0.0]).value()
            0.5
        """
        column = np.asarray(values, dtype=np.float64)[:, None]
        counts = ~np.isnan(column)
        return cls(np.where(counts, column, 0.0), counts.astype(np.float64), better)

    def value(self, images: np.ndarray | None = None) -> float:
        """Returns the number for these images (indices, as often as they are named; default: each once); NaN
        without any.
        """
        rows = slice(None) if images is None else images
        above, below = self.numerator[rows].sum(axis=0), self.denominator[rows].sum(axis=0)
        counts = below > 0
        return float((above[counts] / below[counts]).mean()) if counts.any() else float("nan")


@dataclass(frozen=True)
class Curves:
    """What one protocol measured of one method: for each measure its steps, and a value for each image and step."""

    images: np.ndarray
    steps: Mapping[str, tuple[float | None, ...]]
    values: Mapping[str, np.ndarray]

    def single(self, measure: str) -> np.ndarray:
        """Returns the values of a measure without steps, one per image."""
        return self.values[measure][:, 0]


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


def draws(size: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Int[np.ndarray, "some size"]]:
    """Returns `resamples` times `size` of `size` things with replacement, as many rows at a time as fit into little
    memory.

    The same rows from the same seed, however many come at a time.

    >>> sum(len(rows) for rows in draws(50_000, resamples=100))
    100
    """
    random, rows = np.random.default_rng(seed), max(HELD // max(size, 1), 1)
    for start in range(0, resamples, rows):
        yield random.integers(size, size=(min(rows, resamples - start), size))


def weightings(size: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Int[np.ndarray, "some size"]]:
    """Returns the same resamples as `draws`, each as how often every thing is in it.

    >>> next(weightings(3, resamples=2)).sum(axis=1).tolist()
    [3, 3]
    """
    for rows in draws(size, resamples=resamples, seed=seed):
        apart = rows + size * np.arange(len(rows))[:, None]
        yield np.bincount(apart.ravel(), minlength=rows.size).reshape(rows.shape)


def bootstrap(values: Iterable[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Returns the mean of the values that are not NaN, with its 95 % percentile bootstrap interval (Efron 1979).

    Deterministic from `seed`. Without any value, all is NaN and `size` is 0.

    >>> bootstrap([1.0, 1.0, float("nan")])
    Interval(mean=1.0, low=1.0, high=1.0, size=2)
    """
    known = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    if not len(known):
        return Interval(np.nan, np.nan, np.nan, 0)
    means = [known[rows].mean(axis=1) for rows in draws(len(known), resamples=resamples, seed=seed)]
    low, high = np.quantile(np.concatenate(means), LEVEL)
    return Interval(float(known.mean()), float(low), float(high), len(known))
