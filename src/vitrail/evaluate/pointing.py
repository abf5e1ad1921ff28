"""The pointing game (Zhang et al. 2018, IJCV): does the highest pixel of the map lie on the object?

    hit = argmax S ∈ boxes          boxes: the union of the labelled object's boxes, grown by a tolerance in pixels

Images whose boxes cover half of the picture or more do not count (Englebert et al. 2023): there anything points well.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..bestiary.measures import pointing as on_mask
from ..errors import OptionError

__all__ = ["grown", "pointing"]


def pointing(
    pixels: Float[Tensor, "height width"],
    boxes: Bool[Tensor, "height width"],
    *,
    tolerance: float | int = 0,
    largest: float | int = 0.5,
) -> float:
    """1 where the highest pixel lies inside the boxes, 0 where beside; NaN where they cover nothing or too much.

    Where several pixels are equally high, the share of them that lies inside: what picking one blindly would get.

    Args:
        pixels: the map on the image's pixels, raw.
        boxes: the union of the object's boxes.
        tolerance: how far beside the boxes still counts, in pixels (Zhang et al. allow 15).
        largest: boxes of this share of the area or more do not count.

    Raises:
        OptionError: for a tolerance below 0, or a largest share that is not above 0 and at most 1.

    Example:
        >>> boxes = torch.tensor([[True, False, False, False]])
        >>> pointing(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), boxes)
        0.0
        >>> pointing(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), boxes, tolerance=1)
        1.0
    """
    if not 0 < largest <= 1:
        raise OptionError(f"largest={largest} is no share of the area above 0 and at most 1")
    area = float(boxes.double().mean())
    if area == 0 or (area >= largest and largest < 1):
        return float("nan")
    return on_mask(pixels, grown(boxes, tolerance))


def grown(mask: Bool[Tensor, "height width"], by: float | int) -> Bool[Tensor, "height width"]:
    """The mask and all pixels at most so far from it, straight from centre to centre.

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
