"""From one number per image to one number per data set, with its uncertainty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["Curves", "Statistic"]


class Statistic(NamedTuple):
    """A mean of quotients of sums over images: mean_p( Σ_i over[i, p] / Σ_i under[i, p] ).

    A plain mean over images has one part and `under` 1 (0 where an image does not count); a measure that is accumulated
    over the data set (pixel accuracy, intersection over union) has its counts. `better`: 1 where high is good, −1 where
    low is, 0 where neither.
    """

    over: np.ndarray
    under: np.ndarray
    better: int = 1

    @classmethod
    def mean(cls, values: Sequence[float] | np.ndarray, better: int = 1) -> "Statistic":
        """The mean of one value per image; NaN where an image does not count.

        Example:
            >>> Statistic.mean([1.0, float("nan"), 0.0]).value()
            0.5
        """
        column = np.asarray(values, dtype=np.float64)[:, None]
        counts = ~np.isnan(column)
        return cls(np.where(counts, column, 0.0), counts.astype(np.float64), better)

    def value(self, images: np.ndarray | None = None) -> float:
        """The number for these images (indices, as often as they are named; default: each once); NaN without any."""
        over, under = (self.over, self.under) if images is None else (self.over[images], self.under[images])
        above, below = over.sum(axis=0), under.sum(axis=0)
        counts = below > 0
        return float((above[counts] / below[counts]).mean()) if counts.any() else float("nan")


@dataclass(frozen=True)
class Curves:
    """What one protocol measured of one method: for each measure its steps, and a value for each image and step."""

    images: np.ndarray
    steps: Mapping[str, tuple[float | None, ...]]
    values: Mapping[str, np.ndarray]

    def single(self, measure: str) -> np.ndarray:
        """The values of a measure without steps, one per image."""
        return self.values[measure][:, 0]
