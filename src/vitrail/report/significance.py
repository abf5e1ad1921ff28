"""Which method is better, and how certain that is: everything by resampling images (Efron 1979).

A resample draws as many images as there are, with replacement; a statistic of it is computed from how often each image
was drawn, so that measures accumulated over a data set are resampled as rightly as means:

    value(w) = mean_p( Σ_i w_i numerator[i, p] / Σ_i w_i denominator[i, p] )          w_i: how often image i was drawn

All methods meet the same resamples, so that what makes an image hard for all of them cancels in a difference.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from ..errors import OptionError
from ..metrics.aggregation import LEVEL, RESAMPLES, Interval, Statistic, weightings

__all__ = [
    "Band",
    "Paired",
    "band",
    "counted",
    "holm",
    "intervals",
    "paired",
    "per_image",
    "ranks",
    "resampled",
]


class Band(NamedTuple):
    """A mean curve, the ends of its pointwise 95 % intervals, and the number of images at each step."""

    mean: Float[np.ndarray, " steps"]
    low: Float[np.ndarray, " steps"]
    high: Float[np.ndarray, " steps"]
    images: Shaped[np.ndarray, " steps"]


class Paired(NamedTuple):
    """One method less another on the images that both have.

    `certainty`: the share of resamples in which the first is the better one (the larger one where neither way is
    better), ties by halves. `p`: two-sided, that there is no difference; `adjusted`: the same after Holm's correction
    for all the pairs that were compared. NaN where there are fewer than two images.
    """

    difference: Interval
    certainty: float
    p: float
    adjusted: float


def counted(statistic: Statistic) -> Bool[np.ndarray, " images"]:
    """Returns which images have a value."""
    return np.asarray((statistic.denominator > 0).any(axis=1))


def per_image(statistic: Statistic) -> Float[np.ndarray, " images"]:
    """Returns the statistic of each image alone; NaN where an image does not count.

    >>> per_image(Statistic.mean([1.0, float("nan")])).tolist()
    [1.0, nan]
    """
    return _quotients(statistic.numerator, statistic.denominator, [0])[:, 0]


def resampled(
    statistics: Sequence[Statistic], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "resamples statistics"]:
    """Returns the statistics of each resample; all must be of the same images. NaN where nothing drawn counts.

    Raises:
        OptionError: when they are not of the same number of images.

    >>> resampled([Statistic.mean([1.0, 1.0, 1.0])], resamples=2).tolist()
    [[1.0], [1.0]]
    """
    sizes = {len(one.numerator) for one in statistics}
    if len(sizes) != 1 or not resamples:
        raise OptionError(f"statistics of {sorted(sizes)} images cannot be resampled together")
    (size,) = sizes
    first = np.cumsum([0, *(one.numerator.shape[1] for one in statistics)])[:-1]
    over = np.concatenate([one.numerator for one in statistics], axis=1)
    # Of plain means the denominators are all alike; each different one is summed once.
    under, place = _different([column for one in statistics for column in one.denominator.T])
    found = [
        _quotients(weights @ over, (weights @ under)[:, place], first)
        for weights in (some.astype(np.float64) for some in weightings(size, resamples=resamples, seed=seed))
    ]
    return np.concatenate(found)


def intervals(statistics: Sequence[Statistic], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval]:
    """Returns each statistic with its 95 % percentile interval, over the images that count for it.

    >>> intervals([Statistic.mean([1.0, 1.0, float("nan")])])
    [Interval(mean=1.0, low=1.0, high=1.0, size=2)]
    """
    found = [Interval(np.nan, np.nan, np.nan, 0)] * len(statistics)
    for some, numbers in _together([counted(one) for one in statistics]):
        if not some.any():
            continue
        own = [_of(statistics[number], some) for number in numbers]
        for number, one, values in zip(numbers, own, resampled(own, resamples=resamples, seed=seed).T, strict=True):
            found[number] = _interval(one.value(), values, int(some.sum()))
    return found


def paired(
    families: Sequence[Mapping[str, Statistic]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[tuple[str, str], Paired]]:
    """Returns every two methods of each family (one measure of several methods) on the images that both have.

    A pair (a, b) is there in both orders. The p-value is Student's t of the difference over its bootstrap standard
    error; it is never below 2^(1−images), the least that exchanging the two methods image by image can give, so that a
    handful of images proves nothing by agreeing. Holm's correction is within a family.

    >>> one, other = Statistic.mean([1.0, 0.9, 1.1]), Statistic.mean([0.0, 0.1, 0.1])
    >>> found = paired([{"a": one, "b": other}])[0]["a", "b"]
    >>> round(found.difference.mean, 3), found.certainty, found.p
    (0.933, 1.0, 0.25)
    """
    asked = [(family, pair) for family in range(len(families)) for pair in combinations(families[family], 2)]
    both = [counted(families[family][a]) & counted(families[family][b]) for family, (a, b) in asked]
    met: dict[tuple[int, tuple[str, str]], Paired] = {}
    for some, numbers in _together(both):
        named = list(dict.fromkeys((family, one) for n in numbers for family, pair in [asked[n]] for one in pair))
        own = {key: _of(families[key[0]][key[1]], some) for key in named}
        values = dict(zip(named, resampled(list(own.values()), resamples=resamples, seed=seed).T, strict=True))
        for family, (a, b) in (asked[number] for number in numbers):
            met[family, (a, b)] = _paired(own[family, a], own[family, b], values[family, a], values[family, b])
    found = []
    for family in range(len(families)):
        pairs = list(combinations(families[family], 2))
        adjusted = holm([met[family, pair].p for pair in pairs])
        table: dict[tuple[str, str], Paired] = {}
        for (a, b), p in zip(pairs, adjusted, strict=True):
            one = met[family, (a, b)]._replace(adjusted=p)
            table[a, b], table[b, a] = one, _turned(one)
        found.append(table)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Corrects p-values for their number by Holm's step-down (1979); NaN stays and does not count.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.array(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[values[known].argsort(kind="stable")]
    steps = values[order] * (len(order) - np.arange(len(order)))
    values[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return values.tolist()


def ranks(values: Sequence[float], better: int) -> list[float]:
    """Returns the place of each value, 1 for the best; equal ones share the mean of their places, NaN has none.

    >>> ranks([0.2, 0.5, float("nan"), 0.2], better=-1)
    [1.5, 3.0, nan, 1.5]
    """
    cost = -better * np.array(values, dtype=np.float64)
    ahead = (cost[None, :] < cost[:, None]).sum(axis=1)
    level = (cost[None, :] == cost[:, None]).sum(axis=1)  # itself too
    return np.where(np.isnan(cost), np.nan, ahead + (level + 1) / 2).tolist()


def band(values: Float[np.ndarray, "images steps"], *, resamples: int = RESAMPLES // 4, seed: int = 0) -> Band:
    """Returns the mean curve over images and its pointwise 95 % interval; what is not finite does not count.

    >>> band(np.array([[1.0, 0.5], [1.0, np.nan]])).mean.tolist()
    [1.0, 0.5]
    """
    known = np.isfinite(values)
    steps = [Statistic(np.where(known, values, 0.0)[:, [k]], known[:, [k]] * 1.0) for k in range(values.shape[1])]
    mean = np.array([one.value() for one in steps])
    if not len(values) or not steps:
        return Band(mean, mean, mean, known.sum(axis=0))
    low, high = _quantiles(resampled(steps, resamples=resamples, seed=seed))
    return Band(mean, low, high, known.sum(axis=0))


def _paired(a: Statistic, b: Statistic, of_a: np.ndarray, of_b: np.ndarray) -> Paired:
    from scipy.special import stdtr  # scipy.stats takes seconds to import

    size, difference, values = len(a.numerator), a.value() - b.value(), of_a - of_b
    interval = _interval(difference, values, size) if size else Interval(np.nan, np.nan, np.nan, 0)
    known = values[~np.isnan(values)]
    if size < 2 or not len(known):
        return Paired(interval, np.nan, np.nan, np.nan)
    signed = known * (a.better or 1)
    # Rounding must not break a tie: the same answers summed in another order.
    tie = np.abs(signed) <= 1e-12 * max(np.abs(of_a).max(), np.abs(of_b).max(), 1e-300)
    certainty = float(((signed > 0) & ~tie).mean() + tie.mean() / 2)
    error = float(np.where(tie, 0.0, known).std()) * (size / (size - 1)) ** 0.5
    if tie.all():
        return Paired(interval, certainty, 1.0, np.nan)
    p = float(2 * stdtr(size - 1, -abs(difference) / error)) if error > 0 else 0.0
    return Paired(interval, certainty, min(max(p, 2.0 ** max(1 - size, -1000)), 1.0), np.nan)


def _turned(one: Paired) -> Paired:
    mean, low, high, size = one.difference
    return one._replace(difference=Interval(-mean, -high, -low, size), certainty=1 - one.certainty)


def _interval(value: float, values: Float[np.ndarray, " resamples"], size: int) -> Interval:
    low, high = _quantiles(values[:, None])
    return Interval(float(value), float(low[0]), float(high[0]), size)


def _quantiles(values: Float[np.ndarray, "resamples columns"]) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval in each column, of the resamples that have a value."""
    if not np.isnan(values).any():
        low, high = np.quantile(values, LEVEL, axis=0)
        return low, high
    ends = [np.quantile(known, LEVEL) if len(known) else (np.nan, np.nan) for known in _known(values)]
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])


def _known(values: Float[np.ndarray, "resamples columns"]) -> list[np.ndarray]:
    return [column[~np.isnan(column)] for column in values.T]


def _of(statistic: Statistic, images: Bool[np.ndarray, " images"]) -> Statistic:
    return statistic._replace(numerator=statistic.numerator[images], denominator=statistic.denominator[images])


def _together(masks: Sequence[np.ndarray]) -> list[tuple[np.ndarray, list[int]]]:
    """The different masks, each with the places at which it stands: what is of the same images is resampled once."""
    found: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for place, mask in enumerate(masks):
        found.setdefault(np.packbits(mask).tobytes(), (mask, []))[1].append(place)
    return list(found.values())


def _different(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The different columns side by side, and at which of them each of the given ones stands."""
    found: dict[bytes, int] = {}
    place = [found.setdefault(np.ascontiguousarray(column).tobytes(), len(found)) for column in columns]
    first = [place.index(number) for number in range(len(found))]
    return np.stack([columns[number] for number in first], axis=1), place


def _quotients(
    over: Float[np.ndarray, "rows parts"], under: Float[np.ndarray, "rows parts"], first: Sequence[int] | np.ndarray
) -> Float[np.ndarray, "rows statistics"]:
    """The mean quotient of the parts of each statistic, which begin at the columns `first`; NaN without any."""
    counts = under > 0
    quotients = np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=counts)
    parts = np.add.reduceat(counts.astype(np.float64), first, axis=1)
    sums = np.add.reduceat(quotients, first, axis=1)
    return np.divide(sums, parts, out=np.full_like(sums, np.nan), where=parts > 0)
