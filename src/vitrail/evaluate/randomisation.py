"""How alike two maps are: for the sanity check by cascading randomisation (Adebayo et al. 2018).

When a model's layers are drawn anew, from the last to the first, a map that explains the model must change. One that
stays has shown the picture, not the model.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..bestiary.measures import rank_correlation

__all__ = ["Likeness", "likeness", "structural_similarity"]


class Likeness(NamedTuple):
    """1 where the maps are alike, near 0 where nothing binds them; NaN where one of them is constant.

    `rank`: Spearman's correlation of the scores; `absolute_rank`: of the scores without their signs; `structure`: SSIM
    of the maps, each over its largest absolute score.
    """

    rank: float
    absolute_rank: float
    structure: float


def likeness(first: Float[Tensor, "rows cols"], second: Float[Tensor, "rows cols"]) -> Likeness:
    """How alike two maps are, by three measures.

    Example:
        >>> scores = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, 0.0], [1.5, 2.5, -1.0]])
        >>> likeness(scores, 2 * scores).rank, likeness(scores, -scores).rank, likeness(scores, -scores).absolute_rank
        (1.0, -1.0, 1.0)
    """
    one, other = first.flatten(), second.flatten()
    return Likeness(
        rank_correlation(one, other),
        rank_correlation(one.abs(), other.abs()),
        structural_similarity(_scaled(first), _scaled(second), span=2),
    )


def structural_similarity(
    first: Float[Tensor, "rows cols"], second: Float[Tensor, "rows cols"], *, span: float | int, window: int = 7
) -> float:
    """Structural similarity (Wang et al. 2004) in square windows that lie wholly inside; small maps have smaller ones.

    `span` is the range that the values could have. Constants K₁ = 0.01, K₂ = 0.03; unbiased (co)variances, as
    scikit-image has them. In [−1, 1].

    Example:
        >>> scores = torch.arange(64.0).reshape(8, 8) / 64
        >>> structural_similarity(scores, scores, span=1)
        1.0
    """
    side = min(window, *first.shape)
    a, b = first.double()[None], second.double()[None]
    mean_a, mean_b, aa, bb, ab = (avg_pool2d(part, side, stride=1) for part in (a, b, a * a, b * b, a * b))
    unbiased = side * side / max(side * side - 1, 1)
    var_a, var_b, both = (
        unbiased * part for part in (aa - mean_a * mean_a, bb - mean_b * mean_b, ab - mean_a * mean_b)
    )
    small, large = (0.01 * span) ** 2, (0.03 * span) ** 2
    above = (2 * mean_a * mean_b + small) * (2 * both + large)
    return float((above / ((mean_a**2 + mean_b**2 + small) * (var_a + var_b + large))).mean())


def _scaled(scores: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    largest = scores.abs().max()
    return scores / torch.where(largest > 0, largest, torch.ones_like(largest))
