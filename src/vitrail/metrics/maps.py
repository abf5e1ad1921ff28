"""A map on the pixels of its image, and how alike two maps are."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["bilinear", "correlation", "enlarged", "rank_correlation", "spread"]


def bilinear(scores: Float[Tensor, "*batch rows cols"], size: tuple[int, int]) -> Float[Tensor, "*batch high wide"]:
    """Returns the raw map enlarged bilinearly, corners not aligned, so that each patch keeps its place; signs stay.

    Example:
        >>> import torch
        >>> bilinear(torch.tensor([[-1.0, 3.0]]), (1, 4)).tolist()
        [[-1.0, 0.0, 2.0, 3.0]]
    """
    flat = scores.reshape(-1, 1, *scores.shape[-2:])
    large = interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return large.reshape(*scores.shape[:-2], *size)


def enlarged(scores: Float[Tensor, "*batch rows cols"], size: tuple[int, int]) -> Float[Tensor, "*batch high wide"]:
    """Returns the map as the released script stores it: bilinear, corners not aligned, then from 0 to 1 by minimum and
    maximum.

    A map without differences becomes zero.

    Example:
        >>> enlarged(torch.tensor([[1.0, 3.0]]), (1, 4)).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    large = bilinear(scores, size)
    low, high = large.amin(dim=(-2, -1), keepdim=True), large.amax(dim=(-2, -1), keepdim=True)
    return (large - low) / torch.where(high > low, high - low, torch.ones_like(high))


def spread(scores: Float[Tensor, "rows cols"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Returns each patch's score over its pixels, which must divide `size` evenly: the sum stays what it was.

    >>> spread(torch.tensor([[4.0, 8.0]]), (2, 4)).tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    rows, cols = scores.shape
    high, wide = size[0] // rows, size[1] // cols
    if (high * rows, wide * cols) != tuple(size):
        raise ValueError(f"a map of {rows} x {cols} patches does not tile a picture of {size[0]} x {size[1]} pixels")
    return scores.repeat_interleave(high, 0).repeat_interleave(wide, 1) / (high * wide)


def correlation(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]) -> float:
    """Returns Pearson's correlation of two maps (or lists of numbers), in [-1, 1]; NaN where either is constant."""
    a, b = (x.double().flatten() - x.double().mean() for x in (first, second))
    norm = a.norm() * b.norm()
    return round(float(a @ b / norm), 12) if norm > 0 else torch.nan


def rank_correlation(scores: Float[Tensor, " parts"], importance: Float[Tensor, " parts"]) -> float:
    """Returns Spearman's correlation of part scores with causal importance, signs included, in [-1, 1].

    Ties share their mean rank. NaN for fewer than three parts or where either is the same for all.

    >>> rank_correlation(torch.tensor([3.0, -1.0, 2.0]), torch.tensor([9.0, -5.0, 0.0]))
    1.0
    """
    return correlation(_ranks(scores), _ranks(importance)) if len(scores) > 2 else torch.nan


def _ranks(values: Float[Tensor, " parts"]) -> Float[Tensor, " parts"]:
    """Returns each value's place from 0; equal ones share the mean of theirs."""
    _, place, equal = values.unique(return_inverse=True, return_counts=True)
    return (equal.cumsum(0) - (equal + 1) / 2)[place]
