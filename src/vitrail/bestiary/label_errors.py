"""What a label error looks like in a map: the part by which one class is known argues for the other.

The map of bald eagle against kite puts the eagle's white head on the kite's side. That pictures labelled kite show bald
eagles is one explanation (Cui, Fan and Chen); that Brahminy kites, true ones, have white heads is another. The
bestiary's second model has learned such an error on purpose, so that the explanation is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitrail.attention.gradient_modes import check_gradient_mode
from vitrail.bestiary.benchmark import part_scores
from vitrail.bestiary.causal import causal_truth
from vitrail.bestiary.dataset import LabelErrors
from vitrail.bestiary.model import normalised
from vitrail.bestiary.scene import sample_scene
from vitrail.errors import OptionError
from vitrail.explain import explain
from vitrail.methods import find_method
from vitrail.metrics.aggregation import Interval, bootstrap
from vitrail.metrics.maps import spread
from vitrail.models import VisionModel

__all__ = ["PlantedErrors", "planted_errors"]

SEED = 2**22


@dataclass(frozen=True)
class PlantedErrors:
    """On which side the iconic part is put, over pictures of its own class, by a method and by the model itself.

    `wrong_side` is the share of maps (true class against contaminating class, Eq. 8) in which the part's relevance is
    negative; `truly_wrong` the share of pictures in which drawing the part lowers that difference of logits.
    """

    model: str
    method: str
    wrong_side: Interval
    truly_wrong: Interval


def planted_errors(
    model: VisionModel,
    methods: Sequence[str] = ("complete",),
    *,
    gradient: str = "full",
    errors: LabelErrors | None = None,
    count: int = 100,
    seed: int = SEED,
) -> list[PlantedErrors]:
    """Asks for the true class against the class that took its pictures, on `count` singles that show the part.

    `errors` are those that the shipped model was trained with unless given.

    Raises `OptionError` for a count below 2, and the errors of `explain`.

    >>> import vitrail
    >>> planted_errors(vitrail.load("bestiary"), count=2)[0].method
    'complete'
    """
    if count < 2:
        raise OptionError(f"count={count} scenes are too few for an interval; 2 is the least")
    mode = check_gradient_mode(gradient)  # before all that drawing
    names = [find_method(method, {}).name for method in methods]
    errors = LabelErrors() if errors is None else errors
    scenes = (sample_scene("single", (seed, index), species=errors.shows) for index in range(100 * count))
    truths = []
    for truth in causal_truth(model.module, scenes):
        if any(slot == errors.part for _, slot in truth.parts):
            truths.append(truth)
        if len(truths) == count:
            break
    images = normalised(torch.stack([truth.image for truth in truths]))
    iconic = [next(p for p, (_, slot) in enumerate(truth.parts) if slot == errors.part) for truth in truths]
    worth = [float(t.importance(errors.shows, errors.label)[p]) for t, p in zip(truths, iconic, strict=True)]
    found = []
    for method in names:
        ex = explain(
            model,
            images,
            errors.shows,
            against=errors.label,
            method=method,
            objective="normalized_difference",
            gradient=mode,
            batch_size=50,
        )
        scores = [
            float(part_scores(spread(scores, truth.size), truth.masks)[part])
            for scores, truth, part in zip(ex.scores, truths, iconic, strict=True)
        ]
        found.append(
            PlantedErrors(
                model.name,
                ex.method if mode == "full" else f"{ex.method}, {mode}",
                bootstrap([float(score < 0) for score in scores]),
                bootstrap([float(value < 0) for value in worth]),
            )
        )
    return found
