"""How far a map agrees with what is known of a scene: pure functions on a map, masks and causal importance.

A map gives each patch a score; the score is spread evenly over the patch's pixels, so that sums over masks are sums of
scores. Every measure of one scene is one number; NaN where the scene does not allow it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "correlation",
    "creature_sign",
    "energy",
    "part_scores",
    "part_sign",
    "pointing",
    "rank_correlation",
    "sign_accuracy",
    "spread",
]


def spread(scores: Float[Tensor, "rows cols"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Each patch's score over its pixels, which must divide `size` evenly: the sum stays what it was.

    >>> spread(torch.tensor([[4.0, 8.0]]), (2, 4)).tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    rows, cols = scores.shape
    high, wide = size[0] // rows, size[1] // cols
    if (high * rows, wide * cols) != tuple(size):
        raise ValueError(f"a map of {rows} x {cols} patches does not tile a picture of {size[0]} x {size[1]} pixels")
    return scores.repeat_interleave(high, 0).repeat_interleave(wide, 1) / (high * wide)


def part_scores(
    pixels: Float[Tensor, "height width"], masks: Bool[Tensor, "parts height width"]
) -> Float[Tensor, " parts"]:
    """The relevance that lies on each part."""
    return (pixels * masks).sum((1, 2))


def rank_correlation(scores: Float[Tensor, " parts"], importance: Float[Tensor, " parts"]) -> float:
    """Spearman's correlation of part scores with causal importance, signs and all, in [-1, 1].

    Ties share their mean rank. NaN for fewer than three parts or where either is the same for all.

    >>> rank_correlation(torch.tensor([3.0, -1.0, 2.0]), torch.tensor([9.0, -5.0, 0.0]))
    1.0
    """
    return correlation(_ranks(scores), _ranks(importance)) if len(scores) > 2 else torch.nan


def correlation(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]) -> float:
    """Pearson's correlation of two maps (or lists of numbers), in [-1, 1]; NaN where either is constant."""
    a, b = (x.double().flatten() - x.double().mean() for x in (first, second))
    norm = a.norm() * b.norm()
    return round(float(a @ b / norm), 12) if norm > 0 else torch.nan


def sign_accuracy(
    pixels: Float[Tensor, "height width"],
    target: Bool[Tensor, "height width"],
    other: Bool[Tensor, "height width"],
) -> float:
    """Of the relevance on the target creature, the share that is positive; of that on the other, the share that is
    negative; the mean of the two, in [0, 1].

    A map without negative scores gets 0.5 whatever it shows, and so does chance.
    """
    return (creature_sign(pixels, target) + creature_sign(-pixels, other)) / 2


def creature_sign(pixels: Float[Tensor, "height width"], creature: Bool[Tensor, "height width"]) -> float:
    """Of the absolute relevance on a creature, the share that is positive, in [0, 1]; NaN where there is none."""
    on = pixels[creature].double()
    total = on.abs().sum()
    return float(on.clamp(min=0).sum() / total) if total > 0 else torch.nan


def part_sign(scores: Float[Tensor, " parts"], says: Float[Tensor, " parts"]) -> float:
    """The share of parts whose score has the sign of `says` (+1 for, -1 against, 0: not asked), in [0, 1].

    A score of exactly zero counts half.
    """
    asked = says != 0
    right = (scores[asked].sign() == says[asked].sign()).double() + 0.5 * (scores[asked] == 0).double()
    return float(right.mean()) if bool(asked.any()) else torch.nan


def energy(pixels: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """The share of all positive relevance that lies inside the mask, in [0, 1]; NaN where nothing is positive."""
    positive = pixels.double().clamp(min=0)
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else torch.nan


def pointing(pixels: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """The share of the highest patch that the mask covers: 1 when the map points at the creature, 0 when beside it."""
    return float(mask[pixels == pixels.max()].double().mean())


def _ranks(values: Float[Tensor, " parts"]) -> Float[Tensor, " parts"]:
    """Each value's place from 0; equal ones share the mean of theirs."""
    _, place, equal = values.unique(return_inverse=True, return_counts=True)
    return (equal.cumsum(0) - (equal + 1) / 2)[place]
