"""The pointing game (Zhang et al. 2018, IJCV): does the highest pixel of the map lie on the object?

    hit = argmax S ∈ boxes          boxes: the union of the labelled object's boxes, grown by a tolerance in pixels

Images whose boxes cover half of the picture or more do not count (Englebert et al. 2023): there anything points well.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import bilinear
from ..protocol import Case, Evaluation, Measured, register_protocol

__all__ = ["grown", "highest_inside", "pointing", "pointing_hit"]


def highest_inside(pixels: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """Returns the share of the highest pixels that lie inside the mask: 1 when the map points at it, 0 when
    elsewhere.
    """
    return float(mask[pixels == pixels.max()].double().mean())


def pointing_hit(
    pixels: Float[Tensor, "height width"],
    boxes: Bool[Tensor, "height width"],
    *,
    tolerance: float | int = 0,
    largest: float | int = 0.5,
) -> float:
    """Returns 1 where the highest pixel lies inside the boxes, 0 outside; NaN where they cover nothing or too
    much.

    Where several pixels are equally high, the share of them that lies inside: what picking one blindly would get.

    Args:
        pixels: the map on the image's pixels, raw.
        boxes: the union of the object's boxes.
        tolerance: how far outside the boxes still counts, in pixels (Zhang et al. allow 15).
        largest: boxes of this share of the area or more do not count.

    Raises:
        OptionError: for a tolerance below 0, or a largest share that is not above 0 and at most 1.

    Example:
        >>> boxes = torch.tensor([[True, False, False, False]])
        >>> pointing_hit(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), boxes)
        0.0
        >>> pointing_hit(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), boxes, tolerance=1)
        1.0
    """
    if not 0 < largest <= 1:
        raise OptionError(f"largest={largest} is no share of the area above 0 and at most 1")
    area = float(boxes.double().mean())
    if area == 0 or (area >= largest and largest < 1):
        return float("nan")
    return highest_inside(pixels, grown(boxes, tolerance))


def grown(mask: Bool[Tensor, "height width"], by: float | int) -> Bool[Tensor, "height width"]:
    """Returns the mask and all pixels at most so far from it, straight from centre to centre.

    Raises:
        OptionError: for a distance below 0.

    Example:
        >>> grown(torch.tensor([[True, False, False]]), 1).tolist()
        [[True, True, False]]
    """
    if by < 0:
        raise OptionError(f"tolerance={by} pixels is below 0")
    if by == 0 or not bool(mask.any()):
        return mask
    from scipy.ndimage import distance_transform_edt

    distance = np.asarray(distance_transform_edt(~mask.numpy(force=True)))
    return torch.from_numpy(distance <= by).to(mask.device)


def summarise_pointing(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the share of images whose map points at the object, and what a pixel picked blindly would get on
    the same.
    """
    hits, chance = curves.single("hit"), curves.single("chance")
    return {"pointing": Statistic.mean(hits, 1), "pointing by chance": Statistic.mean(chance, 0)}


@register_protocol(
    "pointing",
    summarise=summarise_pointing,
    reference="Zhang et al. 2018 (IJCV); Englebert et al. 2023",
    needs=("boxes",),
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
    hit = pointing_hit(bilinear(scores, case.size), boxes, tolerance=tolerance, largest=largest)
    chance = float(boxes.double().mean()) if hit == hit else float("nan")
    return [Measured("hit", None, hit), Measured("chance", None, chance)]
