"""Class competition: the target's map less what argues for other classes that are present elsewhere in the image.

With the target's map S, and for its rivals k, the best classes unlike it, the most present first, the weights

    p_k = clamp(1 − (max_j l_j − l_k) / τ, 0, 1),    w_k = p_1 · (p_k / p_1)⁵    (rounded to 1/1024)

one more backward pass gives the map J of Σ_k w_k l_k / max(1, Σ_k w_k). The power lets the most present rival stand
out: one map of several rivals is faint on each. A rival counts only as far as its evidence lies elsewhere, so that the
competing map is

    C = S − (1 − overlap(S⁺, J⁺)) · J,    overlap(a, b) = Σ_p min(a_p / Σa, b_p / Σb)    (p: the patches)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["MOST_RIVALS", "REACH", "UNLIKE", "Rivals", "find_rivals", "joined", "rival_logit", "subtract"]

UNLIKE = 0.5  # two classes whose classifier rows have a cosine of this or more are no rivals
MOST_RIVALS = 4
REACH = 8.0  # τ: a class whose logit lies this far below the largest is absent
SHARPNESS = 5  # the power to which a rival's presence is taken, as a part of that of the most present
STEPS = 1024  # to which presence is rounded: a batch of another size moves the last digits of the logits, and no map


@dataclass(frozen=True, eq=False)
class Rivals:
    """Holds what competed with each target: classes, how much each counts, and the map that was subtracted.

    `classes` are indices, the most present first; a `weights` of 0 marks one that took no part. `scores`
    is the map (1 − overlap) · J, so that the target's own map is the explanation's scores plus these.
    """

    classes: Int[Tensor, "*questions rivals"]
    weights: Float[Tensor, "*questions rivals"]
    scores: Float[Tensor, "*questions rows cols"]

    def __getitem__(self, images: slice) -> "Rivals":
        """Returns the rivals of some of the images."""
        return Rivals(self.classes[images], self.weights[images], self.scores[images])

    def of_target(self, number: int) -> "Rivals":
        """Returns the rivals of one of several targets, without the axis of targets."""
        return Rivals(self.classes[:, number], self.weights[:, number], self.scores[:, number])


def joined(parts: Sequence[Rivals], *, nested: bool) -> Rivals | None:
    """Returns the rivals of several passes as those of all images, on the CPU; None where there are no parts.

    Each part has an axis of targets, which stays where `nested`.
    """
    if not parts:
        return None
    found = (torch.cat([getattr(one, name) for one in parts]).cpu() for name in ("classes", "weights", "scores"))
    return Rivals(*(tensor if nested else tensor[:, 0] for tensor in found))


def find_rivals(
    logits: Float[Tensor, "images classes"],
    target: Int[Tensor, "images targets"],
    rows: Float[Tensor, "classes width"] | None = None,
) -> tuple[Int[Tensor, "images targets rivals"], Float[Tensor, "images targets rivals"]]:
    """Returns the best `MOST_RIVALS` classes unlike each target, and the weight w_k of each, from 0 to 1.

    `rows` are the classifier's directions (`models.similarity.class_rows`); without them all classes are unlike.
    Where fewer classes are unlike the target, the rest have weight 0.

    Example:
        >>> logits = torch.tensor([[7.0, 5.0, 6.0]])
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the first and the last class are alike
        >>> classes, weights = find_rivals(logits, torch.tensor([[0]]), rows)
        >>> classes[0, 0, 0].item(), weights[0, 0].tolist()
        (1, [0.75, 0.0, 0.0])
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(logits.device)
    if rows is None:
        alike = one_hot(target, logits.shape[1]).bool()
    else:
        alike = (rows[target.to(rows.device)] @ rows.T >= UNLIKE).to(logits.device)
        alike |= one_hot(target, logits.shape[1]).bool()  # a row of zeros is unlike even itself
    others = wide[:, None].expand_as(alike).masked_fill(alike, -torch.inf)
    best, classes = others.topk(min(MOST_RIVALS, logits.shape[1]), dim=2)
    presence = (1 - (wide.amax(dim=1)[:, None, None] - best) / REACH).clamp(0, 1)
    first = presence[..., :1]
    weights = torch.where(first > 0, first * (presence / first) ** SHARPNESS, 0)
    return classes, (weights * STEPS).round() / STEPS


def rival_logit(
    logits: Float[Tensor, "images classes"],
    classes: Int[Tensor, "images rivals"],
    weights: Float[Tensor, "images rivals"],
) -> Float[Tensor, " images"]:
    """Returns Σ_k w_k l_k / max(1, Σ_k w_k), the scalar whose map is that of all rivals together.

    Example:
        >>> rival_logit(torch.tensor([[7.0, 5.0, 6.0]]), torch.tensor([[1, 2]]), torch.tensor([[0.5, 1.5]]))
        tensor([5.7500])
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    weights = weights.to(wide)
    return (weights * wide.gather(1, classes.to(wide.device))).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def overlap(
    one: Float[Tensor, "*questions rows cols"], other: Float[Tensor, "*questions rows cols"]
) -> Float[Tensor, "*questions"]:
    """Returns the share of positive relevance that two maps put on the same patches, from 0 to 1.

    Example:
        >>> overlap(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, -1.0]])).item()
        0.25
    """
    first, second = (maps.clamp(min=0).flatten(-2) for maps in (one, other))
    smallest = torch.finfo(one.dtype).tiny
    first, second = (maps / maps.sum(dim=-1, keepdim=True).clamp(min=smallest) for maps in (first, second))
    return torch.minimum(first, second).sum(dim=-1)


def subtract(
    own: Float[Tensor, "*questions rows cols"], rivals: Float[Tensor, "*questions rows cols"]
) -> tuple[Float[Tensor, "*questions rows cols"], Float[Tensor, "*questions rows cols"]]:
    """Returns C = S − (1 − overlap(S⁺, J⁺)) · J, and what was subtracted.

    Example:
        >>> subtract(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]]))[0]
        tensor([[1., 0.]])
    """
    taken = (1 - overlap(own, rivals))[..., None, None] * rivals
    return own - taken, taken
