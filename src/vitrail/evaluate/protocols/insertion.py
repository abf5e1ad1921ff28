"""Insertion, deletion and pixel flipping as protocols: how the answer changes while pixels change by their scores."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..insertion import mean_height, step_ends
from ..perturbation import enlarged
from ..questions import Evaluation, Measured
from ..removal import Removal, perturbation_batch, pixel_ranks
from .fills import filling
from .options import ORDERS, SCORES, answers, check_count, check_one_of, class_asked
from .registry import check_map, register_protocol

__all__ = ["deletion", "insertion", "pixel_flipping"]


def _area(curves: Curves, measure: str, better: int) -> Statistic:
    return Statistic.mean(mean_height(torch.from_numpy(curves.values[measure])).numpy(), better)


def summarise_insertion(curves: Curves, *, score: str = "probability", **_: object) -> dict[str, Statistic]:
    """The area under insertion: better high."""
    return {"insertion AUC": _area(curves, f"insertion.{score}", 1)}


def summarise_deletion(curves: Curves, *, score: str = "probability", **_: object) -> dict[str, Statistic]:
    """The area under deletion: better low."""
    return {"deletion AUC": _area(curves, f"deletion.{score}", -1)}


def summarise_flipping(
    curves: Curves, *, order: str = "morf", score: str = "probability", **_: object
) -> dict[str, Statistic]:
    """The area under pixel flipping: better low where the most relevant go first, else better high."""
    return {f"pixel flipping AUC, {order}": _area(curves, f"{order}.{score}", -1 if order == "morf" else 1)}


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
    turn, until = _steps(case, scores, step, skip)
    appearing = Removal(filling(case, fill), case.image, turn, until)
    return (yield from _watched(case, appearing, "insertion", score, target))


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
    turn, until = _steps(case, scores, step, skip)
    disappearing = Removal(case.image, filling(case, fill), turn, until)
    return (yield from _watched(case, disappearing, "deletion", score, target))


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
    turn, until = _steps(case, scores, step, 1, highest=order == "morf")
    flipping = Removal(case.image, filling(case, fill), turn, until)
    return (yield from _watched(case, flipping, order, score, target))


def _steps(
    case: Case, scores: Float[Tensor, "rows cols"], step: int, skip: int, *, highest: bool = True
) -> tuple[Tensor, list[int]]:
    """The turn of each pixel of the enlarged map, and how many pixels have changed at each score."""
    check_map(case, scores)
    check_count("step", step)
    check_count("skip", skip, least=0)
    large = enlarged(scores, case.size)
    return pixel_ranks(large, case.size, highest=highest), step_ends(large.numel(), step=step, skip=skip)


def _watched(case: Case, removal: Removal, name: str, score: str, target: str) -> Evaluation:
    """One class's answers to the images of a removal, each at its share of the pixels."""
    asked = class_asked(case, target)
    check_one_of("score", score, SCORES)
    values = answers(case, (yield perturbation_batch(removal)), asked, score).tolist()
    pixels = removal.turns.numel()
    return [Measured(f"{name}.{score}", end / pixels, value) for end, value in zip(removal.until, values, strict=True)]
