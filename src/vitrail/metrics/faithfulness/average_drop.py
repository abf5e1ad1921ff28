"""Average drop, increase and gain (Chattopadhyay et al. 2018; Zhang et al. 2024): the confidence under a veil.

    seen    = veiled(image, weights, ground)                  x ⊙ m, and the ground where m is small
    change  = confidence_change(p, p_m)                       its drop, increase and gain

Probabilities are those of one class, in float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..aggregation import Curves, Statistic
from ..maps import enlarged
from ..protocol import (
    Case,
    Evaluation,
    LogitQuery,
    Measured,
    answers,
    check_map,
    check_one_of,
    check_shares,
    class_asked,
    register_protocol,
)
from ..removal import filling, pixel_ranks

__all__ = ["ConfidenceChange", "average_drop", "confidence_change", "veiled"]

VEILS = ("map", "top")


def veiled(
    image: Float[Tensor, "channels height width"],
    weights: Float[Tensor, "height width"],
    ground: Float[Tensor, "channels height width"],
) -> Float[Tensor, "channels height width"]:
    """Returns x ⊙ m + ground ⊙ (1 − m): with a ground of zeros the image times its map.

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
    """Returns how much lower, whether higher, and how much higher a probability is.

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


def summarise_drop(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean drop (better low), share of increases and mean gain (both better high)."""
    return {
        "average drop": Statistic.mean(curves.single("drop"), -1),
        "average increase": Statistic.mean(curves.single("increase")),
        "average gain": Statistic.mean(curves.single("gain")),
    }


@register_protocol(
    "average_drop", summarise=summarise_drop, reference="Chattopadhyay et al. 2018 (Grad-CAM++); Zhang et al. 2024"
)
def average_drop(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    veil: str = "map",
    share: float | int = 0.5,
    fill: str = "zero",
    target: str = "explained",
) -> Evaluation:
    """How much of the confidence is left when the image is veiled by its own map.

    `veil`: "map", the image times the enlarged map from 0 to 1; or "top", the whole image where the highest `share` of
    the pixels lies and nothing elsewhere. `fill`: what lies under the veil; "zero" is x ⊙ m on the normalised image,
    "black" the same on pixels from 0 to 1.

    Raises:
        OptionError: for a word that is not known, or a share that is not between 0 and 1.
    """
    check_one_of("veil", veil, VEILS)
    check_shares((share,))
    check_map(scores, case.size)
    asked = class_asked(case, target)
    weights, ground = enlarged(scores, case.size), filling(case, fill)
    if veil == "top":
        weights = (pixel_ranks(weights, case.size) < int(weights.numel() * share)).to(weights.dtype)
    logits = yield LogitQuery(1, lambda _: veiled(case.image, weights, ground)[None])
    both = torch.stack([case.logits, logits[0].to(case.logits)])
    before, after = answers(case, both, asked, "probability")
    change = confidence_change(before, after)
    return [Measured(name, None, float(value)) for name, value in zip(change._fields, change, strict=True)]
