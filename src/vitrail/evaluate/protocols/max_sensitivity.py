"""Max-sensitivity as a protocol: maps of slightly changed images."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import OptionError
from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..max_sensitivity import SPACES, boxed_noise, sensitivities
from ..questions import AttributionQuery, Evaluation, Measured
from .registry import register_protocol

__all__ = ["max_sensitivity"]

TOGETHER = 10  # changed images at a time: those of many cases wait side by side in memory


def summarise(curves: Curves, **_: object) -> dict[str, Statistic]:
    """The means over images of the largest and of the mean sensitivity; both better low."""
    return {
        "max-sensitivity": Statistic.mean(curves.single("largest"), -1),
        "mean sensitivity": Statistic.mean(curves.single("mean"), -1),
    }


@register_protocol("max_sensitivity", summarise=summarise, reference="Yeh et al. 2019; Englebert et al. 2023")
def max_sensitivity(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    samples: int = 10,
    radius: float | int = 0.02,
    space: str = "normalised",
) -> Evaluation:
    """How far the map of the same class moves when the image is changed by a little uniform noise.

    `radius`: half the width of the noise, in the units of `space`: of the model's "normalised" input, or of "pixels"
    from 0 to 1. The defaults are Captum's, which TIS uses; those of Quantus are samples=200, radius=0.2.
    """
    if space not in SPACES:
        raise OptionError(f"space={space!r} is unknown; choose one of {', '.join(SPACES)}")
    width: float | int | Tensor = radius
    if space == "pixels":
        if case.white is None:
            raise OptionError('space="pixels" needs a model whose preprocessing is known; use space="normalised"')
        width = radius * (torch.tensor(case.white) - torch.tensor(case.black))
    generator = case.generator()
    found = []
    for start in range(0, max(samples, 1), TOGETHER):
        count = min(TOGETHER, samples - start)
        images = case.image + boxed_noise(case.image, count, width, generator)
        maps = yield AttributionQuery(images, [case.target] * count)
        found.append(sensitivities(scores.double(), maps.to(scores.device).double()))
    moved = torch.cat(found)
    return [Measured("largest", None, float(moved.max())), Measured("mean", None, float(moved.mean()))]
