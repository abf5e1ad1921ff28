"""How far the model's confidence moves when parts of an image go, from its logits before and after.

    drops   = probability_drops(before, after, c)             p(x) − p(x_k) for each k
    aopc    = area_over_curve(drops)                          1/(K+1) Σ_{k=0…K} of these, where that of k = 0 is none
    odds    = log_odds(before, after, c)                      log( p(x_k) / p(x) )
    seen    = veiled(image, weights, ground)                  x ⊙ m, and the ground where m is small
    change  = confidence_change(p, p_m)                       its drop, increase and gain

All probabilities are those of one class c, in float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..outputs import LOGITS, Output

__all__ = [
    "ConfidenceChange",
    "area_over_curve",
    "confidence_change",
    "log_odds",
    "probability_drops",
    "veiled",
]


def probability_drops(
    before: Float[Tensor, " classes"], after: Float[Tensor, "steps classes"], asked: int, output: Output = LOGITS
) -> Float[Tensor, " steps"]:
    """By how much the probability of a class is lower than it was: p(x) − p(x_k).

    Raises:
        OutputKindError: for a model that gives none.

    Example:
        >>> drops = probability_drops(torch.zeros(2), torch.tensor([[0.0, 0.0], [-9.0, 9.0]]), 0)
        >>> [round(drop, 3) for drop in drops.tolist()]
        [0.0, 0.5]
    """
    return output.probabilities(before.double())[asked] - output.probabilities(after.double())[:, asked]


def area_over_curve(drops: Float[Tensor, "*batch steps"]) -> Float[Tensor, "*batch"]:
    """AOPC, 1/(K+1) Σ_{k=0}^{K} [p(x) − p(x_k)], for the drops of k = 1 … K (Samek et al. 2017, Eq. 12).

    Example:
        >>> float(area_over_curve(torch.tensor([0.2, 0.4, 0.6])))
        0.30000001192092896
    """
    return drops.sum(dim=-1) / (drops.shape[-1] + 1)


def log_odds(
    before: Float[Tensor, " classes"], after: Float[Tensor, "steps classes"], asked: int, output: Output = LOGITS
) -> Float[Tensor, " steps"]:
    """log( p(x_k) / p(x) ), natural, below zero where the class has lost (Shrikumar et al. 2017; Chen et al. 2019).

    Raises:
        OutputKindError: for a model that gives no probabilities.

    Example:
        >>> round(float(log_odds(torch.zeros(2), torch.tensor([[-50.0, 50.0]]), 0)), 3)
        -99.307
    """
    return output.log_probabilities(after.double())[:, asked] - output.log_probabilities(before.double())[asked]


def veiled(
    image: Float[Tensor, "channels height width"],
    weights: Float[Tensor, "height width"],
    ground: Float[Tensor, "channels height width"],
) -> Float[Tensor, "channels height width"]:
    """x ⊙ m + ground ⊙ (1 − m): with a ground of zeros the image times its map.

    Example:
        >>> veiled(torch.ones(1, 1, 2), torch.tensor([[0.25, 1.0]]), torch.zeros(1, 1, 2)).tolist()
        [[[0.25, 1.0]]]
    """
    some = weights.to(image)
    return image * some + ground * (1 - some)


class ConfidenceChange(NamedTuple):
    """What a veil does to a probability: `drop` max(0, p − p_m)/p, `increase` 1 where p_m > p, and `gain`.

    The gain is max(0, p_m − p)/(1 − p), and 0 where p is 1 already (Chattopadhyay et al. 2018; Zhang et al. 2024).
    """

    drop: Tensor
    increase: Tensor
    gain: Tensor


def confidence_change(before: Float[Tensor, "*batch"], after: Float[Tensor, "*batch"]) -> ConfidenceChange:
    """How much lower, whether higher, and how much higher a probability is.

    Example:
        >>> [float(x) for x in confidence_change(torch.tensor(0.5), torch.tensor(0.75))]
        [0.0, 1.0, 0.5]
        >>> [float(x) for x in confidence_change(torch.tensor(0.5), torch.tensor(0.25))]
        [0.5, 0.0, 0.0]
    """
    room = 1 - before
    gained = (after - before).clamp(min=0)
    return ConfidenceChange(
        drop=(before - after).clamp(min=0) / before,
        increase=(after > before).to(before.dtype),
        gain=torch.where(room > 0, gained / torch.where(room > 0, room, torch.ones_like(room)), gained),
    )
