"""Are the signs right? In a picture of several classes: for the target on its own region, against it on the others'.

    sign accuracy        = ½ ( Σ_target S⁺ / Σ_target |S|  +  Σ_others S⁻ / Σ_others |S| )        each side counts half
    right share          = ( Σ_target S⁺ + Σ_others S⁻ ) / Σ_{target ∪ others} |S|
    positive on target   = Σ_target S⁺ / Σ S⁺
    negative on others   = Σ_others S⁻ / Σ S⁻              with S⁺ = max(S, 0), S⁻ = max(−S, 0)

A map that is nowhere negative has a sign accuracy of one half, whatever it shows, and no negative share. The right
share of such a map is its mass on the target, so that it can be high without any sign being told: read both.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..bestiary.measures import energy, sign_accuracy
from ..errors import OptionError

__all__ = ["Signs", "sides", "signs"]


class Signs(NamedTuple):
    """The four shares, each in [0, 1], NaN where it is of nothing."""

    sign_accuracy: float
    right_share: float
    positive_on_target: float
    negative_on_others: float


def signs(
    pixels: Float[Tensor, "height width"],
    target: Bool[Tensor, "height width"],
    others: Bool[Tensor, "height width"],
) -> Signs:
    """How much of a map has the right sign, on the target's region and on those of the other classes.

    Example:
        >>> pixels = torch.tensor([[3.0, -1.0, -3.0, 1.0]])
        >>> left = torch.tensor([[True, True, False, False]])
        >>> signs(pixels, left, ~left)
        Signs(sign_accuracy=0.75, right_share=0.75, positive_on_target=0.75, negative_on_others=0.75)
    """
    scores = pixels.double()
    mass = float(scores[target | others].abs().sum())
    right = float(scores[target].clamp(min=0).sum() - scores[others].clamp(max=0).sum())
    return Signs(
        sign_accuracy(pixels, target, others),
        right / mass if mass > 0 else float("nan"),
        energy(pixels, target),
        energy(-pixels, others),
    )


def sides(
    regions: Mapping[int, Bool[Tensor, "height width"]], target: int
) -> tuple[Bool[Tensor, "height width"], Bool[Tensor, "height width"]]:
    """The target's region and that of all other classes together; what both claim belongs to neither.

    Raises:
        OptionError: when the target has no region, or no other class has one.

    Example:
        >>> regions = {7: torch.tensor([True, True, False])[None], 9: torch.tensor([False, True, True])[None]}
        >>> [side.tolist() for side in sides(regions, 7)]
        [[[True, False, False]], [[False, False, True]]]
    """
    if target not in regions or len(regions) < 2:
        known = ", ".join(map(str, regions)) or "none"
        raise OptionError(f"signs need regions of class {target} and of another; there are those of {known}")
    own = regions[target]
    rest = torch.stack([region for index, region in regions.items() if index != target]).any(dim=0)
    return own & ~rest, rest & ~own
