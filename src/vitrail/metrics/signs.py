"""Are the signs right? In a picture of several classes: for the target on its own region, against it on the others'.

    sign accuracy        = ½ ( Σ_target S⁺ / Σ_target |S|  +  Σ_others S⁻ / Σ_others |S| )        each side counts half
    right share          = ( Σ_target S⁺ + Σ_others S⁻ ) / Σ_{target ∪ others} |S|
    positive on target   = Σ_target S⁺ / Σ S⁺
    negative on others   = Σ_others S⁻ / Σ S⁻              with S⁺ = max(S, 0), S⁻ = max(−S, 0)

A map that is nowhere negative has a sign accuracy of one half, whatever it shows, and no negative share. The right
share of such a map is its mass on the target, so that it can be high without any sign being told: read both.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import OptionError
from .aggregation import Curves, Statistic
from .localisation.energy import energy_share
from .maps import correlation, spread
from .protocol import AttributionQuery, Case, Evaluation, Measured, check_map, register_protocol

__all__ = ["CLASSES", "Signs", "positive_share", "sides", "sign_accuracy", "sign_shares", "signs"]

CLASSES = ("all", "target")


def sign_accuracy(
    pixels: Float[Tensor, "height width"],
    target: Bool[Tensor, "height width"],
    other: Bool[Tensor, "height width"],
) -> float:
    """Returns the mean of the positive share of the relevance on the target's region and the negative share on the
    other's, in [0, 1].

    A map without negative scores gets 0.5 whatever it shows, and so does chance.
    """
    return (positive_share(pixels, target) + positive_share(-pixels, other)) / 2


def positive_share(pixels: Float[Tensor, "height width"], region: Bool[Tensor, "height width"]) -> float:
    """Returns the positive share of the absolute relevance in a region, in [0, 1]; NaN where there is none."""
    on = pixels[region].double()
    total = on.abs().sum()
    return float(on.clamp(min=0).sum() / total) if total > 0 else torch.nan


class Signs(NamedTuple):
    """The four shares, each in [0, 1], NaN where it is of nothing."""

    sign_accuracy: float
    right_share: float
    positive_on_target: float
    negative_on_others: float


def sign_shares(
    pixels: Float[Tensor, "height width"],
    target: Bool[Tensor, "height width"],
    others: Bool[Tensor, "height width"],
) -> Signs:
    """Returns the share of a map with the right sign, on the target's region and on those of the other classes.

    Example:
        >>> pixels = torch.tensor([[3.0, -1.0, -3.0, 1.0]])
        >>> left = torch.tensor([[True, True, False, False]])
        >>> sign_shares(pixels, left, ~left)
        Signs(sign_accuracy=0.75, right_share=0.75, positive_on_target=0.75, negative_on_others=0.75)
    """
    scores = pixels.double()
    mass = float(scores[target | others].abs().sum())
    right = float(scores[target].clamp(min=0).sum() - scores[others].clamp(max=0).sum())
    return Signs(
        sign_accuracy(pixels, target, others),
        right / mass if mass > 0 else float("nan"),
        energy_share(pixels, target, "positive"),
        energy_share(-pixels, others, "positive"),
    )


def sides(
    regions: Mapping[int, Bool[Tensor, "height width"]], target: int
) -> tuple[Bool[Tensor, "height width"], Bool[Tensor, "height width"]]:
    """Returns the target's region and that of all other classes together; what both claim belongs to neither.

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


def summarise_signs(curves: Curves, *, classes: str = "all", **_: object) -> dict[str, Statistic]:
    """Returns the means over images; the likeness of the classes' maps is better low."""
    found = {name.replace("_", " "): Statistic.mean(curves.single(name), 1) for name in Signs._fields}
    if classes == "all":
        found["likeness of classes"] = Statistic.mean(curves.single("likeness"), -1)
    return found


@register_protocol(
    "signs",
    summarise=summarise_signs,
    reference="Vitrail; mosaics: Arias-Duart et al. 2022",
    needs=("regions",),
    signed=True,
)
def signs(case: Case, scores: Float[Tensor, "rows cols"], *, classes: str = "all") -> Evaluation:
    """How much of the map has the right sign: for the target on its region, against it on those of other classes.

    `classes`: "all" asks for a map of every class that the picture is known to hold, takes the mean over them as the
    picture's one observation, and tells how alike the maps are; "target" takes the target's map alone. A picture where
    fewer than two classes have regions does not count, nor does one without the target's under "target".
    """
    if classes not in CLASSES:
        raise OptionError(f"classes={classes!r} cannot be asked about; choose one of {', '.join(CLASSES)}")
    check_map(scores, case.size)
    known = [index for index, region in case.regions.items() if bool(region.any())]
    regions = {index: case.regions[index].to(scores.device) for index in known}
    asked = [index for index in known if classes == "all" or index == case.target] if len(known) > 1 else []
    maps = {case.target: scores}
    others = [index for index in asked if index != case.target]
    if others:
        answer = yield AttributionQuery(case.image.expand(len(others), -1, -1, -1), others)
        maps |= {index: found.to(scores) for index, found in zip(others, answer, strict=True)}
    found = [sign_shares(spread(maps[index], case.size), *sides(regions, index)) for index in asked]
    columns = zip(*found, strict=True) if found else [()] * len(Signs._fields)
    measured = [Measured(name, None, _mean(column)) for name, column in zip(Signs._fields, columns, strict=True)]
    if classes == "all":
        pairs = [correlation(maps[one], maps[other]) for one, other in combinations(asked, 2)]
        measured.append(Measured("likeness", None, _mean(pairs)))
    return measured


def _mean(values: "tuple[float, ...] | list[float]") -> float:
    """Returns the mean of what is not NaN, and NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
