"""Insertion, deletion and pixel flipping: how the answer changes while pixels appear or disappear by their scores.

places  = step_ends(50176, step=224)                      0, 224, … 50176: how many pixels have changed at each score
number  = mean_height(curve)                              the area under the scores, from 0 to 1

(Petsiuk, Das, Saenko 2018, RISE; Bach et al. 2015, pixel flipping.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import enlarged
from ..protocol import (
    ORDERS,
    SCORES,
    Case,
    Evaluation,
    Measured,
    answers,
    check_count,
    check_map,
    check_one_of,
    class_asked,
    register_protocol,
)
from ..removal import Removal, filling, perturbation_batch, pixel_ranks

__all__ = ["deletion", "insertion", "mean_height", "pixel_flipping", "step_ends"]


def step_ends(places: int, *, step: int, skip: int = 0) -> list[int]:
    """Returns the number of changed places at each score: none, `step`, twice that, … all; the first `skip` are left
    out.

    Raises:
        OptionError: when fewer than two scores are left, which have no area.

    Example:
        >>> step_ends(10, step=4), step_ends(10, step=4, skip=1)
        ([0, 4, 8, 10], [4, 8, 10])
    """
    if step < 1 or skip < 0:
        raise OptionError(f"step={step} must be at least 1 place, and skip={skip} at least 0")
    ends = [*range(0, places, step), places][skip:]
    if len(ends) < 2:
        raise OptionError(f"step={step} with skip={skip} leaves {len(ends)} scores of {places} places; two are least")
    return ends


def mean_height(curve: Float[Tensor, "*batch scores"]) -> Float[Tensor, "*batch"]:
    """Returns (Σ − first/2 − last/2) / (n − 1), the trapezoid over equal steps from 0 to 1.

    The last step counts as much as the others, also where it changes fewer places.

    Example:
        >>> float(mean_height(torch.tensor([0.0, 0.5, 1.0])))
        0.5
    """
    return (curve.sum(dim=-1) - curve[..., 0] / 2 - curve[..., -1] / 2) / (curve.shape[-1] - 1)


def summarise_insertion(curves: Curves, *, score: str = "probability", **_: object) -> dict[str, Statistic]:
    """Returns the area under insertion: better high."""
    return {"insertion AUC": _area(curves, f"insertion.{score}", 1)}


@register_protocol("insertion", summarise=summarise_insertion, reference="Petsiuk, Das, Saenko 2018 (RISE)")
def insertion(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    step: int = 224,
    fill: str = "blur",
    score: str = "probability",
    target: str = "predicted",
    skip: int = 0,
) -> Evaluation:
    """How soon the answer comes while the pixels of the highest scores appear on an empty ground.

    `step`: pixels of the bilinearly enlarged map that appear between two scores (224: RISE; 1792: TAM). `fill`: the
    ground (see `filling`). `score`: "probability", "hit" (the class wins) or "output" (the model's own number, as for a
    regression). `target`: the class watched, "predicted", "explained" or "label". `skip`: scores left out at the
    beginning (1: Englebert et al. 2023).

    Raises:
        OptionError: for a word that is not known, or steps that leave fewer than two scores.
    """
    ranks, until = _steps(case, scores, step, skip)
    appearing = Removal(filling(case, fill), case.image, ranks, until)
    return (yield from _watched(case, appearing, "insertion", score, target))


def summarise_deletion(curves: Curves, *, score: str = "probability", **_: object) -> dict[str, Statistic]:
    """Returns the area under deletion: better low."""
    return {"deletion AUC": _area(curves, f"deletion.{score}", -1)}


@register_protocol("deletion", summarise=summarise_deletion, reference="Petsiuk, Das, Saenko 2018 (RISE)")
def deletion(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    step: int = 224,
    fill: str = "zero",
    score: str = "probability",
    target: str = "predicted",
    skip: int = 0,
) -> Evaluation:
    """How soon the answer goes while the pixels of the highest scores disappear.

    Options as of `insertion`; `fill` is what is left where a pixel was.

    Raises:
        OptionError: as `insertion`.
    """
    ranks, until = _steps(case, scores, step, skip)
    disappearing = Removal(case.image, filling(case, fill), ranks, until)
    return (yield from _watched(case, disappearing, "deletion", score, target))


def summarise_flipping(
    curves: Curves, *, order: str = "morf", score: str = "probability", **_: object
) -> dict[str, Statistic]:
    """Returns the area under pixel flipping: better low where the most relevant go first, else better high."""
    return {f"pixel flipping AUC, {order}": _area(curves, f"{order}.{score}", -1 if order == "morf" else 1)}


@register_protocol("pixel_flipping", summarise=summarise_flipping, reference="Bach et al. 2015; Hedström et al. 2023")
def pixel_flipping(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    step: int = 224,
    order: str = "morf",
    fill: str = "lowest",
    target: str = "explained",
    score: str = "probability",
) -> Evaluation:
    """The probability while pixels flip to one value, the most relevant first ("morf") or the least ("lerf").

    `score` is what is watched, as of `insertion`.
    As Quantus' `PixelFlipping` has it on the enlarged map: the first score is that after the first step, and `step`
    pixels are 3 · `step` of its `features_in_step`. `fill="lowest"` and "highest" are its black and white.

    Raises:
        OptionError: for a word that is not known, or steps that leave fewer than two scores.
    """
    check_one_of("order", order, ORDERS)
    ranks, until = _steps(case, scores, step, 1, highest=order == "morf")
    flipping = Removal(case.image, filling(case, fill), ranks, until)
    return (yield from _watched(case, flipping, order, score, target))


def _area(curves: Curves, measure: str, better: int) -> Statistic:
    return Statistic.mean(mean_height(torch.from_numpy(curves.values[measure])).numpy(), better)


def _steps(
    case: Case, scores: Float[Tensor, "rows cols"], step: int, skip: int, *, highest: bool = True
) -> tuple[Tensor, list[int]]:
    """Returns the rank of each pixel of the enlarged map, and how many pixels have changed at each score."""
    check_map(scores, case.size)
    check_count("step", step)
    check_count("skip", skip, least=0)
    large = enlarged(scores, case.size)
    return pixel_ranks(large, case.size, highest=highest), step_ends(large.numel(), step=step, skip=skip)


def _watched(case: Case, removal: Removal, name: str, score: str, target: str) -> Evaluation:
    """Returns one class's answers to the images of a removal, each at its share of the pixels."""
    asked = class_asked(case, target)
    check_one_of("score", score, SCORES)
    values = answers(case, (yield perturbation_batch(removal)), asked, score).tolist()
    pixels = removal.ranks.numel()
    return [Measured(f"{name}.{score}", end / pixels, value) for end, value in zip(removal.until, values, strict=True)]
