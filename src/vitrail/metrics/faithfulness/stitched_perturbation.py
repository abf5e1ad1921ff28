"""The seed paper's perturbation of images stitched to a guide, with the controls that tell what it shows (Fig. 12).

Where patches may go from, and from which picture:

anywhere    every patch of the input may go, those of the guide too
own half    only patches of the picture's own half may go: finding the guide gains nothing
alone       the same with the guide filled from the start, so that the class has a chance to be seen
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...errors import DataError, OptionError
from ..aggregation import Curves, Statistic
from ..protocol import (
    AttributionQuery,
    Case,
    Evaluation,
    Measured,
    answers,
    check_map,
    check_one_of,
    check_shares,
    register_protocol,
)
from ..removal import FILLS, Removal, filling, perturbation_batch, pixel_ranks, places_of
from .perturbation import AREAS, SHARES, WAYS, area

__all__ = ["REGIONS", "stitched_perturbation", "stitched_removal", "without"]

MAPS = ("map", "less guide")
REGIONS = ("anywhere", "own half", "alone")


def without(
    image: Float[Tensor, "channels height width"],
    region: Bool[Tensor, "rows cols"],
    ground: Float[Tensor, "channels height width"],
) -> Float[Tensor, "channels height width"]:
    """Returns the image with all patches of a region filled.

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
    """Returns the highest patches first ("positive") or the lowest ("negative"), from a region, at each share of it.

    `own` and `far` are the patches of the picture and of the guide; a patch in the middle may belong to neither.

    Raises:
        OptionError: for another way or region.
    """
    if way not in WAYS or region not in REGIONS:
        raise OptionError(f"{way!r}, {region!r}: ways are {', '.join(WAYS)}, regions {', '.join(REGIONS)}")
    allowed = torch.ones_like(own) if region == REGIONS[0] else own
    shown = without(image, far, ground) if region == REGIONS[2] else image
    height, width = image.shape[-2:]
    ranks = pixel_ranks(scores, (height, width), highest=way == WAYS[0], allowed=allowed)
    count = int(allowed.sum())
    return Removal(shown, ground, ranks, [int(count * share) for share in shares])


def summarise_stitched(
    curves: Curves, *, auc: str = "bi", shares: Sequence[float] = SHARES, **_: object
) -> dict[str, Statistic]:
    """Returns the area under the accuracy for each map, way and region: positive better low, negative better high."""
    found = {}
    for name, way, region in product(MAPS, WAYS, REGIONS):
        hits = torch.from_numpy(curves.values[f"{name}.{way}.{region}.hit"])
        heights = area(hits, auc, shares=shares).numpy()
        which = "" if name == MAPS[0] else f"{name}, "
        found[f"{way} AUC, {which}{region}"] = Statistic.mean(heights, -1 if way == WAYS[0] else 1)
    return found


@register_protocol(
    "stitched_perturbation",
    summarise=summarise_stitched,
    reference="Cui, Fan, Chen (Fig. 12), with controls",
    needs=("label", "regions"),
    signed=True,
)
def stitched_perturbation(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    fill: str = "black",
    auc: str = "bi",
    shares: Sequence[float] = SHARES,
) -> Evaluation:
    """How often the true class wins next to a guide when patches go, with controls for knowing where the guide is.

    The image holds two classes, the label's own region and the guide's. "map" is the method's map, "less guide" the
    same less its map of the guide's class: signs for a method that has none. Patches go anywhere, from the own half
    alone ("own half"), or from it with the guide filled from the start ("alone").

    Raises:
        OptionError: for a word that is not known, or shares that are not ascending between 0 and 1.
        DataError: when the image's regions are not those of its label and one other class.
    """
    check_one_of("auc", auc, AREAS)
    check_one_of("fill", fill, FILLS)
    check_shares(shares)
    check_map(scores, case.size)
    guide, own, far = _halves(case)
    against = yield AttributionQuery(case.image[None], targets=[guide])
    maps = (scores, scores - against[0].to(scores))
    ground = filling(case, fill)
    plain = Removal(case.image, ground, torch.zeros(case.size, dtype=torch.int32), (0,))
    alone = Removal(without(case.image, far, ground), ground, plain.ranks, (0,))
    asked = [
        stitched_removal(
            case.image, places_of(case, one, "patch"), way, region, own=own, far=far, ground=ground, shares=shares
        )
        for one, way, region in product(maps, WAYS, REGIONS)
    ]
    logits = yield perturbation_batch(plain, alone, *asked)
    assert case.label is not None
    hits = answers(case, logits, case.label, "hit").tolist()
    first = {region: hits[1] if region == REGIONS[2] else hits[0] for region in REGIONS}
    measured = []
    for number, (name, way, region) in enumerate(product(MAPS, WAYS, REGIONS)):
        row = hits[2 + number * len(shares) :][: len(shares)]
        steps = zip((0.0, *map(float, shares)), (first[region], *row), strict=True)
        measured += [Measured(f"{name}.{way}.{region}.hit", step, value) for step, value in steps]
    return measured


def _halves(case: Case) -> tuple[int, Bool[Tensor, "rows cols"], Bool[Tensor, "rows cols"]]:
    """Returns the guide's class, the patches of the label's own region and those of the guide's: where most
    pixels are.
    """
    others = [known for known in case.regions if known != case.label]
    if case.label is None or case.label not in case.regions or len(others) != 1:
        raise DataError(
            f"{case.source} has regions of the classes {sorted(case.regions)} and the label {case.label}: a stitched "
            "image has two regions, its label's and the guide's"
        )
    halves = [
        adaptive_avg_pool2d(case.regions[known][None].float(), case.grid)[0] > 0.5 for known in (case.label, others[0])
    ]
    return others[0], halves[0], halves[1]
