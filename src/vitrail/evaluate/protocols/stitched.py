"""The seed paper's perturbation of pictures beside a guide, with the controls that tell what it shows (Fig. 12)."""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...errors import DataError
from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..perturbation import AREAS, SHARES, area
from ..questions import AttributionQuery, Evaluation, Measured
from ..removal import Removal, perturbation_batch
from ..stitched import REGIONS, WAYS, stitched_removal, without
from .fills import check_fill, filling
from .options import answers, check_one_of, check_shares, places_of
from .registry import check_map, register_protocol

__all__ = ["stitched_perturbation"]

MAPS = ("map", "less guide")


def summarise(
    curves: Curves, *, auc: str = "bi", shares: Sequence[float] = SHARES, **_: object
) -> dict[str, Statistic]:
    """The area under the accuracy for each map, way and region: positive better low, negative better high."""
    found = {}
    for name, way, region in product(MAPS, WAYS, REGIONS):
        hits = torch.from_numpy(curves.values[f"{name}.{way}.{region}.hit"])
        heights = area(hits, auc, shares=shares).numpy()
        which = "" if name == MAPS[0] else f"{name}, "
        found[f"{way} AUC, {which}{region}"] = Statistic.mean(heights, -1 if way == WAYS[0] else 1)
    return found


@register_protocol(
    "stitched_perturbation",
    summarise=summarise,
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
    """How often the true class wins beside a guide when patches go, with controls for knowing where the guide is.

    The image holds two classes, the label's own region and the guide's. "map" is the method's map, "less guide" the
    same less its map of the guide's class: signs for a method that has none. Patches go anywhere, from the own half
    alone ("own half"), or from it with the guide filled from the start ("alone").

    Raises:
        OptionError: for a word that is not known, or shares that are not ascending between 0 and 1.
        DataError: when the image's regions are not those of its label and one other class.
    """
    check_one_of("auc", auc, AREAS)
    check_fill(fill)
    check_shares(shares)
    check_map(case, scores)
    guide, own, far = _halves(case)
    against = yield AttributionQuery(case.image[None], targets=[guide])
    maps = (scores, scores - against[0].to(scores))
    ground = filling(case, fill)
    plain = Removal(case.image, ground, torch.zeros(case.size, dtype=torch.int32), (0,))
    alone = Removal(without(case.image, far, ground), ground, plain.turns, (0,))
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
    """The guide's class, the patches of the label's own region and those of the guide's: where most pixels are."""
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
