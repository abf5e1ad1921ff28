"""Patches taken out of a picture beside a guide: where they may go from, and from which picture.

anywhere    every patch of the input may go, those of the guide too
own half    only patches of the picture's own half may go: finding the guide gains nothing
alone       the same with the guide filled from the start, so that the class has a chance to be seen
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import OptionError
from .perturbation import SHARES
from .removal import Removal, pixel_ranks

__all__ = ["REGIONS", "WAYS", "stitched_removal", "without"]

WAYS = ("positive", "negative")
REGIONS = ("anywhere", "own half", "alone")


def without(
    image: Float[Tensor, "channels height width"],
    region: Bool[Tensor, "rows cols"],
    ground: Float[Tensor, "channels height width"],
) -> Float[Tensor, "channels height width"]:
    """The image with all patches of a region filled.

    Example:
        >>> without(torch.ones(1, 1, 4), torch.tensor([[False, True]]), torch.zeros(1, 1, 4)).tolist()
        [[[1.0, 1.0, 0.0, 0.0]]]
    """
    height, width = image.shape[-2:]
    places = pixel_ranks(torch.zeros_like(region, dtype=torch.float32), (height, width), allowed=region)
    count = int(region.sum())
    return Removal(image, ground, places, (count,)).images(range(1))[0]


def stitched_removal(
    image: Float[Tensor, "channels height width"],
    scores: Float[Tensor, "rows cols"],
    way: str,
    region: str,
    *,
    own: Bool[Tensor, "rows cols"],
    far: Bool[Tensor, "rows cols"],
    ground: Float[Tensor, "channels height width"],
    shares: Sequence[float] = SHARES,
) -> Removal:
    """The highest patches first ("positive") or the lowest ("negative"), from a region, at each share of it.

    `own` and `far` are the patches of the picture and of the guide; a patch in the middle may belong to neither.

    Raises:
        OptionError: for another way or region.
    """
    if way not in WAYS or region not in REGIONS:
        raise OptionError(f"{way!r}, {region!r}: ways are {', '.join(WAYS)}, regions {', '.join(REGIONS)}")
    allowed = torch.ones_like(own) if region == REGIONS[0] else own
    shown = without(image, far, ground) if region == REGIONS[2] else image
    height, width = image.shape[-2:]
    turn = pixel_ranks(scores, (height, width), highest=way == WAYS[0], allowed=allowed)
    count = int(allowed.sum())
    return Removal(shown, ground, turn, [int(count * share) for share in shares])
