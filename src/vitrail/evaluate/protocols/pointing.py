"""The pointing game as a protocol."""

from jaxtyping import Float
from torch import Tensor

from ...metrics.aggregation import Curves, Statistic
from ..bilinear import bilinear
from ..case import Case
from ..pointing import pointing as points
from ..questions import Evaluation, Measured
from .registry import register_protocol

__all__ = ["pointing"]


def summarise(curves: Curves, **_: object) -> dict[str, Statistic]:
    """The share of images whose map points at the object, and what a pixel picked blindly would get on the same."""
    hits, chance = curves.single("hit"), curves.single("chance")
    return {"pointing": Statistic.mean(hits, 1), "pointing by chance": Statistic.mean(chance, 0)}


@register_protocol(
    "pointing", summarise=summarise, reference="Zhang et al. 2018 (IJCV); Englebert et al. 2023", needs=("boxes",)
)
def pointing(
    case: Case, scores: Float[Tensor, "rows cols"], *, tolerance: float | int = 0, largest: float | int = 0.5
) -> Evaluation:
    """How often the highest pixel of the bilinearly enlarged map lies in the object's boxes.

    `tolerance`: how far beside them still counts, in pixels. `largest`: images whose boxes cover this share of the
    picture or more are left out; 1 leaves none out.
    """
    yield from ()  # it asks nothing of the model
    assert case.boxes is not None
    boxes = case.boxes.to(scores.device)
    hit = points(bilinear(scores, case.size), boxes, tolerance=tolerance, largest=largest)
    chance = float(boxes.double().mean()) if hit == hit else float("nan")
    return [Measured("hit", None, hit), Measured("chance", None, chance)]
