"""Pairs of classes whose training labels are probably mixed: what is typical of one argues, for the model, for the
other.

Of an image of class B, S_B is the map of B and C the contrastive map of B against A. The typical part T is the tenth of
the patches with the highest S_B; it speaks for A where Σ_{T} C < 0. Over the images of B the share of those in which it
does, with the one-sided sign test against one half, tells whether the model learnt that what is typical of B belongs to
A, as it does where many of the training images that are labelled A show B. All pairs that are asked are tested
together: the p-values are corrected by Benjamini and Hochberg's procedure (scipy).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float, Int

__all__ = ["ClassPair", "confusable_pairs", "sign_tests", "speaks_for_other", "typical_share"]

TYPICAL = 0.1  # of the patches


@dataclass(frozen=True)
class ClassPair:
    """Over `images` of class `shown`: the share whose typical part speaks for class `other`.

    `low` and `high` are the ends of Wilson's 95 % interval of the share, `p` that of the sign test, `adjusted` the same
    corrected for all the pairs. `balance` is the mean of (Σ_T C) / Σ_T |C|, from −1 (all for the other class) to 1;
    `margin` the mean of the logit of `shown` less that of `other`, for which no map is needed; `joint` confident
    learning's estimate of the share of all images that are labelled `other` and show `shown`.
    """

    shown: int
    other: int
    images: int
    share: float
    low: float
    high: float
    p: float
    adjusted: float
    balance: float
    margin: float
    joint: float


def confusable_pairs(
    labels: Int[np.ndarray, " images"],
    probabilities: Float[np.ndarray, "images classes"],
    *,
    count: int,
    least: int = 5,
) -> list[tuple[int, int]]:
    """Returns up to `count` ordered pairs (shown, other): those whose images of `shown` have the highest mean
    probability of `other`.

    Classes with fewer than `least` images are left out as `shown`.

    Example:
        >>> shares = np.array([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9]])
        >>> confusable_pairs(np.array([0, 0, 2]), shares, count=2, least=1)
        [(0, 1), (2, 1)]
    """
    found: list[tuple[float, int, int]] = []
    for shown in np.unique(labels).tolist():
        own = labels == shown
        if own.sum() < least:
            continue
        mean = probabilities[own].mean(axis=0)
        best = np.argsort(-mean, kind="stable")[: count + 1].tolist()
        found += [(-float(mean[other]), shown, other) for other in best if other != shown and mean[other] > 0]
    return [(shown, other) for _, shown, other in sorted(found)[:count]]


def typical_share(
    single: Float[np.ndarray, "rows cols"], contrast: Float[np.ndarray, "rows cols"], typical: float = TYPICAL
) -> float:
    """Returns (Σ_T C) / Σ_T |C| over the typical part T: from −1, all for the other class, to 1; 0 where C is 0 there.

    Example:
        >>> typical_share(np.array([[3.0, 1.0, 0.0]]), np.array([[-2.0, 5.0, 5.0]]), typical=0.3)
        -1.0
    """
    count = max(1, ceil(typical * single.size))
    there = np.argsort(-single.ravel(), kind="stable")[:count]
    values = contrast.ravel()[there].astype(np.float64)
    whole = np.abs(values).sum()
    return float(values.sum() / whole) if whole else 0.0


def speaks_for_other(balances: Sequence[float]) -> tuple[int, int]:
    """Returns how many typical parts speak for the other class, and of how many images; ties count for neither.

    Example:
        >>> speaks_for_other([-0.5, 0.2, 0.0])
        (1, 2)
    """
    values = np.asarray(balances, dtype=np.float64)
    return int((values < 0).sum()), int((values != 0).sum())


def sign_tests(
    balances: Mapping[tuple[int, int], Sequence[float]],
    margins: Mapping[tuple[int, int], float],
    joint: Float[np.ndarray, "classes classes"] | None = None,
) -> list[ClassPair]:
    """Returns the pairs by descending share, equal ones by ascending balance, all tested together.

    Example:
        >>> found = sign_tests({(0, 1): [-0.5] * 8, (1, 0): [0.5] * 8}, {(0, 1): 2.0, (1, 0): 3.0})
        >>> found[0].shown, found[0].share, round(found[0].p, 4), round(found[0].adjusted, 4)
        (0, 1.0, 0.0039, 0.0078)
    """
    from scipy.stats import binomtest, false_discovery_control  # takes seconds to import

    tests = {}
    for pair, values in balances.items():
        wrong, asked = speaks_for_other(values)
        if asked:
            tests[pair] = binomtest(wrong, asked, 0.5, alternative="greater")
    if not tests:
        return []
    adjusted = false_discovery_control([test.pvalue for test in tests.values()])
    found = []
    for (pair, test), corrected in zip(tests.items(), adjusted.tolist(), strict=True):
        ends = binomtest(test.k, test.n).proportion_ci(method="wilson")
        shown, other = pair
        found.append(
            ClassPair(
                shown=shown,
                other=other,
                images=test.n,
                share=test.k / test.n,
                low=float(ends.low),
                high=float(ends.high),
                p=float(test.pvalue),
                adjusted=float(corrected),
                balance=float(np.mean(list(balances[pair]))),
                margin=margins[pair],
                joint=0.0 if joint is None else float(joint[other, shown]),
            )
        )
    return sorted(found, key=lambda one: (-one.share, one.balance, one.shown, one.other))
