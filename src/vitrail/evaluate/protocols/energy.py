"""The energy pointing game as a protocol, with the agreement of boxes beside it."""

from jaxtyping import Float
from torch import Tensor

from ...metrics.aggregation import Curves, Statistic
from ..bilinear import bilinear
from ..case import Case
from ..energy import box_agreement
from ..energy import energy as share_inside
from ..questions import Evaluation, Measured
from .registry import register_protocol

__all__ = ["energy"]


def summarise(curves: Curves, **_: object) -> dict[str, Statistic]:
    """The mean share inside, what an even map would get, and how well the binarised map agrees with the boxes."""
    found = {"energy": Statistic.mean(curves.single("energy"), 1)}
    found["energy of an even map"] = Statistic.mean(curves.single("area"), 0)
    for measure in ("precision", "recall", "f1"):
        found[f"box {measure}".replace("f1", "F1")] = Statistic.mean(curves.single(f"box.{measure}"), 1)
    return found


@register_protocol("energy", summarise=summarise, reference="Wang et al. 2020; Yuan et al. 2021", needs=("boxes",))
def energy(
    case: Case, scores: Float[Tensor, "rows cols"], *, sign: str = "absolute", binary: float | int = 0.3
) -> Evaluation:
    """How much of the bilinearly enlarged map's mass lies in the object's boxes.

    `sign`: "absolute" for the mass of all scores, "positive" for that of the positive ones. `binary`: the share of the
    highest score from which a pixel counts where precision, recall and F1 are taken against the boxes.
    """
    yield from ()  # it asks nothing of the model
    assert case.boxes is not None
    boxes, pixels = case.boxes.to(scores.device), bilinear(scores, case.size)
    found = box_agreement(pixels, boxes, binary)
    return [
        Measured("energy", None, share_inside(pixels, boxes, sign)),
        Measured("area", None, float(boxes.double().mean())),
        *(Measured(f"box.{name}", None, value) for name, value in found._asdict().items()),
    ]
