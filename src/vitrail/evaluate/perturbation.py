"""Positive and negative perturbation (Chefer, Gur, Wolf 2021): what is left of an answer when parts of the image go.

The places of a map (its patches, or pixels) are ranked by their scores and taken out of the image, 10 % … 90 % of them:
the highest first (positive: the answer should fall soon), or the lowest first (negative: it should hold). All here are
pure functions of tensors; who calls the model is somebody else's business.

    order   = ranking(scores)                                 the highest first, ties by position
    images  = perturb(pixels, scores, share=0.3)              the first int(0.3 · places) of the order filled
    tokens  = kept_tokens(order, 0.3, prefix=1)               the same by dropping tokens, which shortens the sequence
    curve   = outcome(logits, label, original).hit            1 where the label still wins
    number  = area(curve, "bi")                               under accuracy over share, by a named convention

The released script takes pixels of the bilinearly enlarged map (`enlarged`), fills them with 0 before normalisation
(black), and scores against the ground-truth label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import OptionError
from ..outputs import LOGITS, Output
from .bilinear import bilinear

__all__ = [
    "AREAS",
    "SHARES",
    "Outcome",
    "area",
    "enlarged",
    "kept_tokens",
    "outcome",
    "perturb",
    "ranking",
    "taken_out",
]

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
AREAS = ("bi", "trapz_01_09", "mean9")


def ranking(
    scores: Float[Tensor, "*batch places"],
    *,
    highest: bool = True,
    allowed: Bool[Tensor, " places"] | None = None,
) -> Int[Tensor, "*batch ranked"]:
    """The places in the order in which they go: the highest score first, or the lowest; ties by position.

    `allowed` says which places may go at all (default: every one); the others are not in the order.

    Example:
        >>> ranking(torch.tensor([0.5, 2.0, 0.5, -1.0])).tolist()
        [1, 0, 2, 3]
        >>> ranking(torch.tensor([0.5, 2.0, 0.5, -1.0]), highest=False, allowed=torch.tensor([1, 1, 1, 0]) > 0).tolist()
        [0, 2, 1]
    """
    if allowed is None:
        return scores.argsort(dim=-1, descending=highest, stable=True)
    places = allowed.nonzero()[:, 0]
    return places[scores[..., places].argsort(dim=-1, descending=highest, stable=True)]


def taken_out(order: Int[Tensor, "*batch ranked"], share: float | int, places: int) -> Bool[Tensor, "*batch places"]:
    """Which of `places` are gone when a share of those in the order, int(share · ranked), has been taken out.

    Raises:
        OptionError: for a share that is not between 0 and 1.

    Example:
        >>> taken_out(torch.tensor([3, 1]), 0.5, places=4).tolist()
        [False, False, False, True]
    """
    if not 0 <= share <= 1:
        raise OptionError(f"share={share} of the image is not between 0 and 1")
    gone = torch.zeros(*order.shape[:-1], places, dtype=torch.bool, device=order.device)
    return gone.scatter(-1, order[..., : int(order.shape[-1] * share)], True)


def perturb(
    images: Float[Tensor, "*batch channels height width"],
    scores: Float[Tensor, "*batch rows cols"],
    share: float | int,
    *,
    highest: bool = True,
    fill: float | int | Float[Tensor, " channels"] = 0.0,
    allowed: Bool[Tensor, "rows cols"] | None = None,
) -> Float[Tensor, "*batch channels height width"]:
    """Images with a share of their places filled: whole patches, or single pixels for a map of the images' own size.

    Args:
        images: pixels from 0 to 1 for the released protocol, or normalised ones with their own `fill`.
        scores: one map per image, whose rows and columns divide the images'.
        share: from 0 to 1, of the places that are allowed.
        highest: the highest scores first; otherwise the lowest.
        fill: what a place shows instead, one value or one per channel; 0 is black for pixels from 0 to 1.
        allowed: the places that may go; default: all.

    Raises:
        OptionError: when the map's grid does not divide the images, or for a share beyond 0…1.

    Example:
        >>> picture, scores = torch.ones(3, 4, 4), torch.tensor([[0.0, 3.0], [1.0, 2.0]])
        >>> perturb(picture, scores, 0.25)[0].tolist()[0]
        [1.0, 1.0, 0.0, 0.0]
    """
    (height, width), (rows, cols) = images.shape[-2:], scores.shape[-2:]
    if height % rows or width % cols:
        raise OptionError(f"a map of {rows}×{cols} places does not divide an image of {height}×{width} pixels")
    flat = None if allowed is None else allowed.flatten()
    order = ranking(scores.flatten(-2), highest=highest, allowed=flat)
    gone = taken_out(order, share, rows * cols).unflatten(-1, (rows, cols))
    gone = gone.repeat_interleave(height // rows, -2).repeat_interleave(width // cols, -1).to(images.device)
    value = torch.as_tensor(fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    return torch.where(gone[..., None, :, :], value, images)


def kept_tokens(
    order: Int[Tensor, "*batch ranked"], share: float | int, *, prefix: int, places: int | None = None
) -> Int[Tensor, "*batch kept"]:
    """The tokens that stay, in their own order, when a share of the patches is dropped: the prefix, then patches.

    `places` is the number of patches, by default as many as are in the order.

    Example:
        >>> kept_tokens(torch.tensor([2, 0, 1, 3]), 0.5, prefix=1).tolist()
        [0, 2, 4]
    """
    count = order.shape[-1] if places is None else places
    gone = taken_out(order, share, count)
    kept = count - int(order.shape[-1] * share)
    # False sorts before True, and the sort is stable: what stays, in its own order.
    patches = gone.to(torch.uint8).argsort(dim=-1, stable=True)[..., :kept]
    first = torch.arange(prefix, device=order.device).expand(*order.shape[:-1], prefix)
    return torch.cat([first, patches + prefix], dim=-1)


def enlarged(scores: Float[Tensor, "*batch rows cols"], size: tuple[int, int]) -> Float[Tensor, "*batch high wide"]:
    """The map as the released script stores it: bilinear, corners not aligned, then from 0 to 1 by minimum and maximum.

    A map without differences becomes zero.

    Example:
        >>> enlarged(torch.tensor([[1.0, 3.0]]), (1, 4)).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    large = bilinear(scores, size)
    low, high = large.amin(dim=(-2, -1), keepdim=True), large.amax(dim=(-2, -1), keepdim=True)
    return (large - low) / torch.where(high > low, high - low, torch.ones_like(high))


class Outcome(NamedTuple):
    """What the released script keeps of a perturbed image, one number each.

    `hit`: 1 where the label wins (see `Output.wins`). `dissimilarity`: log of the label's probability over the second
    highest. `logit_change`, `probability_change`: of the highest logit and probability, less those of the original.
    """

    hit: Tensor
    dissimilarity: Tensor
    logit_change: Tensor
    probability_change: Tensor


def outcome(
    logits: Float[Tensor, "*batch classes"],
    label: Int[Tensor, "*batch"],
    original: Float[Tensor, "*batch classes"],
    output: Output = LOGITS,
) -> Outcome:
    """What became of the answers, from the logits of the perturbed images and of the originals.

    Where labels do not exclude each other, a hit is a probability of the label above one half.

    Raises:
        OutputKindError: for a model whose numbers are no classes.

    Example:
        >>> outcome(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), torch.tensor([[0.0, 3.0]])).logit_change.tolist()
        [-1.0]
    """
    # Logarithms are subtracted, not probabilities divided: these round to 0 where a class has lost by a hundred.
    logs, before = output.log_probabilities(logits), output.probabilities(original)
    best, _ = logs.topk(2, dim=-1)
    own = logs.gather(-1, label[..., None])[..., 0]
    return Outcome(
        hit=output.wins(logits, label).to(logits.dtype),
        dissimilarity=own - best[..., 1],
        logit_change=logits.amax(dim=-1) - original.amax(dim=-1),
        probability_change=best[..., 0].exp() - before.amax(dim=-1),
    )


def area(
    curve: Float[Tensor, "*batch steps"], convention: str = "bi", *, shares: Sequence[float] = SHARES
) -> Float[Tensor, "*batch"]:
    """The area under accuracy over share; `curve` begins with the unperturbed image and has one value per share after.

    The conventions are not comparable with one another:

        bi            trapezoid over 0, `shares`, 1, where the value at 1 is taken to be 0 (Chen et al. 2023; published
                      numbers of this protocol are mostly of this kind)
        trapz_01_09   trapezoid over `shares` alone, divided by their span
        mean9         mean over `shares`

    Raises:
        OptionError: for another convention, or a curve that has not one value more than there are shares.

    Example:
        >>> curve = torch.ones(10)
        >>> [round(float(area(curve, name)), 3) for name in AREAS]
        [0.95, 1.0, 1.0]
    """
    if convention not in AREAS:
        raise OptionError(f"convention={convention!r} of an area is not known; choose one of {', '.join(AREAS)}")
    if curve.shape[-1] != len(shares) + 1:
        raise OptionError(
            f"a curve of {curve.shape[-1]} values does not fit {len(shares)} shares: "
            "the unperturbed image comes first, then one value for each"
        )
    x = torch.tensor(shares, dtype=curve.dtype, device=curve.device)
    if convention == "mean9":
        return curve[..., 1:].mean(dim=-1)
    if convention == "trapz_01_09":
        return torch.trapezoid(curve[..., 1:], x, dim=-1) / (x[-1] - x[0])
    ends = torch.cat([x.new_zeros(1), x, x.new_ones(1)])
    return torch.trapezoid(torch.cat([curve, torch.zeros_like(curve[..., :1])], dim=-1), ends, dim=-1)
