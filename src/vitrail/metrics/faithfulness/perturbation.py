"""Positive and negative perturbation (Chefer, Gur, Wolf 2021): what is left of an answer when parts of the image go.

The places of a map (its patches, or pixels) are ranked by their scores and removed from the image, 10 % … 90 % of them:
the highest first (positive: the answer should fall soon), or the lowest first (negative: it should hold).

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

from ...errors import OptionError
from ...outputs import LOGITS, Output
from ..aggregation import Curves, Statistic
from ..protocol import Case, Evaluation, Measured, check_map, check_one_of, register_protocol
from ..removal import morf_lerf, ranking, taken_out

__all__ = ["AREAS", "SHARES", "WAYS", "PerturbationOutcome", "area", "outcome", "perturb", "perturbation"]

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
AREAS = ("bi", "trapz_01_09", "mean9")
WAYS = ("positive", "negative")


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
    check_map(scores, (height, width))
    flat = None if allowed is None else allowed.flatten()
    order = ranking(scores.flatten(-2), highest=highest, allowed=flat)
    gone = taken_out(order, share, rows * cols).unflatten(-1, (rows, cols))
    gone = gone.repeat_interleave(height // rows, -2).repeat_interleave(width // cols, -1).to(images.device)
    value = torch.as_tensor(fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    return torch.where(gone[..., None, :, :], value, images)


class PerturbationOutcome(NamedTuple):
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
) -> PerturbationOutcome:
    """Returns the perturbation's outcome, from the logits of the perturbed images and of the originals.

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
    return PerturbationOutcome(
        hit=output.wins(logits, label).to(logits.dtype),
        dissimilarity=own - best[..., 1],
        logit_change=logits.amax(dim=-1) - original.amax(dim=-1),
        probability_change=best[..., 0].exp() - before.amax(dim=-1),
    )


def area(
    curve: Float[Tensor, "*batch steps"], convention: str = "bi", *, shares: Sequence[float] = SHARES
) -> Float[Tensor, "*batch"]:
    """Returns the area under accuracy over share; `curve` begins with the unperturbed image and has one value per share
    after.

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


def summarise_perturbation(
    curves: Curves, *, auc: str = "bi", shares: Sequence[float] = SHARES, **_: object
) -> dict[str, Statistic]:
    """Returns the area under the accuracy, for each way: positive better low, negative better high."""
    found = {}
    for way, better in zip(WAYS, (-1, 1), strict=True):
        hits = torch.from_numpy(curves.values[f"{way}.hit"])
        found[f"{way} AUC"] = Statistic.mean(area(hits, auc, shares=shares).numpy(), better)
    return found


@register_protocol(
    "perturbation",
    summarise=summarise_perturbation,
    reference="Chefer, Gur, Wolf 2021 (CVPR); Chen et al. 2023",
    needs=("label",),
)
def perturbation(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    unit: str = "pixel",
    fill: str = "black",
    auc: str = "bi",
    shares: Sequence[float] = SHARES,
) -> Evaluation:
    """How often the true class still wins when the highest (positive) or lowest (negative) scores are removed.

    `unit`: single pixels of the bilinearly enlarged map, whole patches, or tokens left out of the sequence. `fill`:
    what a place shows instead (see `filling`; tokens have none). `auc`: the convention of the area. `shares`: of the
    places, ascending; int(share · places) of them go.

    Raises:
        OptionError: for a unit, fill or convention that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("auc", auc, AREAS)
    assert case.label is not None
    logits = yield from morf_lerf(case, scores, unit, fill, shares)
    original = case.logits.expand(len(WAYS), 1, -1)
    curves = torch.cat([original, logits], dim=1)
    label = torch.full(curves.shape[:2], case.label, device=curves.device)
    results = outcome(curves, label, original.expand_as(curves), case.output)
    measured = []
    for measure, values in zip(results._fields, torch.stack(results).tolist(), strict=True):
        for way, row in zip(WAYS, values, strict=True):
            steps = zip((0.0, *map(float, shares)), row, strict=True)
            measured += [Measured(f"{way}.{measure}", step, value) for step, value in steps]
    return measured
