"""Region perturbation (Samek et al. 2017): how far the probability falls while regions go, and AOPC, its mean drop."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..maps import enlarged
from ..protocol import (
    ORDERS,
    Case,
    Evaluation,
    Measured,
    answers,
    check_count,
    check_map,
    check_one_of,
    class_asked,
    register_protocol,
)
from ..removal import Removal, filling, perturbation_batch, pixel_ranks, places_of

__all__ = ["area_over_curve", "region_perturbation"]


def area_over_curve(drops: Float[Tensor, "*batch steps"]) -> Float[Tensor, "*batch"]:
    """Returns AOPC, 1/(K+1) Σ_{k=0}^{K} [p(x) − p(x_k)], for the drops of k = 1 … K (Samek et al. 2017, Eq. 12).

    Example:
        >>> float(area_over_curve(torch.tensor([0.2, 0.4, 0.6])))
        0.30000001192092896
    """
    return drops.sum(dim=-1) / (drops.shape[-1] + 1)


def summarise_regions(curves: Curves, *, order: str = "morf", **_: object) -> dict[str, Statistic]:
    """Returns AOPC: better high where the most relevant go first, else better low."""
    drops = torch.from_numpy(curves.values[f"{order}.drop"])
    return {f"AOPC, {order}": Statistic.mean(area_over_curve(drops).numpy(), 1 if order == "morf" else -1)}


@register_protocol("region_perturbation", summarise=summarise_regions, reference="Samek et al. 2017 (AOPC)")
def region_perturbation(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    unit: str = "region",
    size: int = 8,
    regions: int = 100,
    order: str = "morf",
    fill: str = "lowest",
    target: str = "explained",
    score: str = "probability",
) -> Evaluation:
    """The drop of the probability while regions go one by one, the most relevant first ("morf") or the least ("lerf").

    `unit`: "region", squares of `size` pixels ranked by the sum of the enlarged map within, as Quantus'
    `RegionPerturbation` has it; or "patch", the model's own patches by their own scores. At most `regions` of them go,
    one a step. `score` is what drops, as of `insertion`. `fill="lowest"` and "highest" are Quantus' black and white.
    AOPC is the sum of the drops over one more than their number.

    Raises:
        OptionError: for a word that is not known, or a size that does not divide the image.
    """
    check_one_of("unit", unit, ("region", "patch"))
    check_one_of("order", order, ORDERS)
    check_count("regions", regions)
    check_count("size", size)
    check_map(scores, case.size)
    height, width = case.size
    if unit == "patch":
        places = places_of(case, scores, "patch")
    elif height % size or width % size:
        raise OptionError(
            f"regions of {size}×{size} pixels do not divide an image of {height}×{width}; try another size"
        )
    else:
        places = avg_pool2d(enlarged(scores, case.size)[None], size)[0]
    asked = class_asked(case, target)
    ranks = pixel_ranks(places, case.size, highest=order == "morf")
    until = range(1, min(regions, places.numel()) + 1)
    logits = yield perturbation_batch(Removal(case.image, filling(case, fill), ranks, until))
    watched = answers(case, torch.cat([case.logits[None], logits.to(case.logits)]), asked, score)
    drops = (watched[0] - watched[1:]).tolist()
    return [Measured(f"{order}.drop", float(step), drop) for step, drop in zip(until, drops, strict=True)]
