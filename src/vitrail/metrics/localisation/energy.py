"""How much of a map's mass lies on the object: the energy pointing game, and Yuan et al.'s agreement of boxes.

energy = Σ_boxes |S| / Σ |S|                  (Wang et al. 2020, Score-CAM; there of maps without negative scores)
box    = S ≥ 0.3 · max S  against the boxes:  precision, recall, F1        (Yuan et al. 2021, TAM)
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import bilinear
from ..protocol import Case, Evaluation, Measured, register_protocol

__all__ = ["SIGNS", "Agreement", "agreement", "box_agreement", "energy", "energy_share"]

SIGNS = ("absolute", "positive")


def energy_share(
    pixels: Float[Tensor, "height width"], region: Bool[Tensor, "height width"], sign: str = "absolute"
) -> float:
    """Returns the share of the map's mass that lies in the region, in [0, 1]; NaN for a map without mass.

    `sign` says what mass is: the scores without their signs, or the positive ones alone.

    Raises:
        OptionError: for another sign.

    Example:
        >>> import torch
        >>> scores, left = torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[True, False, False]])
        >>> energy_share(scores, left), round(energy_share(scores, left, "positive"), 4)
        (0.25, 0.3333)
    """
    if sign not in SIGNS:
        raise OptionError(f"sign={sign!r} is no mass of a map; choose one of {', '.join(SIGNS)}")
    mass = pixels.double()
    mass = mass.abs() if sign == "absolute" else mass.clamp(min=0)
    total = mass.sum()
    return float(mass[region].sum() / total) if total > 0 else float("nan")


class Agreement(NamedTuple):
    """How well one set of pixels is found by another; NaN where a share is of nothing."""

    precision: float
    recall: float
    f1: float


def agreement(found: Bool[Tensor, "*shape"], wanted: Bool[Tensor, "*shape"]) -> Agreement:
    """Returns precision, recall and F1 = 2TP / (2TP+FP+FN).

    Example:
        >>> import torch
        >>> agreement(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        Agreement(precision=0.5, recall=1.0, f1=0.6666666666666666)
    """
    both, one, other = (int(part.sum()) for part in (found & wanted, found, wanted))
    return Agreement(_share(both, one), _share(both, other), _share(2 * both, one + other))


def box_agreement(
    pixels: Float[Tensor, "height width"], boxes: Bool[Tensor, "height width"], share: float | int = 0.3
) -> Agreement:
    """Returns how well the pixels with at least a share of the highest score agree with the boxes.

    A map without positive scores finds nothing.

    Raises:
        OptionError: for a share that is not between 0 and 1.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[True, True, False, False]])
        >>> box_agreement(torch.tensor([[1.0, 0.2, 0.4, -2.0]]), boxes)
        Agreement(precision=0.5, recall=0.5, f1=0.5)
    """
    if not 0 < share <= 1:
        raise OptionError(f"share={share} of the highest score is not above 0 and at most 1")
    return agreement((pixels >= share * pixels.max()) & (pixels > 0), boxes)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def summarise_energy(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean share inside, what an even map would get, and how well the binarised map agrees with the
    boxes.
    """
    found = {"energy": Statistic.mean(curves.single("energy"), 1)}
    found["energy of an even map"] = Statistic.mean(curves.single("area"), 0)
    for measure in ("precision", "recall", "f1"):
        found[f"box {measure}".replace("f1", "F1")] = Statistic.mean(curves.single(f"box.{measure}"), 1)
    return found


@register_protocol(
    "energy", summarise=summarise_energy, reference="Wang et al. 2020; Yuan et al. 2021", needs=("boxes",)
)
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
        Measured("energy", None, energy_share(pixels, boxes, sign)),
        Measured("area", None, float(boxes.double().mean())),
        *(Measured(f"box.{name}", None, value) for name, value in found._asdict().items()),
    ]
