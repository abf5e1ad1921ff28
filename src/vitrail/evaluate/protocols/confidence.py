"""AOPC, log-odds, and what is left of the confidence under a veil made of the map, as protocols."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ...errors import OptionError
from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..confidence import area_over_curve, confidence_change, log_odds, veiled
from ..perturbation import enlarged
from ..questions import Evaluation, LogitQuery, Measured
from ..removal import Removal, perturbation_batch, pixel_ranks
from .fills import filling
from .options import ORDERS, answers, check_count, check_one_of, check_shares, class_asked, places_of
from .registry import check_map, register_protocol

__all__ = ["average_drop", "log_odds_of_removal", "region_perturbation"]

VEILS = ("map", "top")


def summarise_regions(curves: Curves, *, order: str = "morf", **_: object) -> dict[str, Statistic]:
    """AOPC: better high where the most relevant go first, else better low."""
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
    check_map(case, scores)
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
    turn = pixel_ranks(places, case.size, highest=order == "morf")
    until = range(1, min(regions, places.numel()) + 1)
    logits = yield perturbation_batch(Removal(case.image, filling(case, fill), turn, until))
    watched = answers(case, torch.cat([case.logits[None], logits.to(case.logits)]), asked, score)
    drops = (watched[0] - watched[1:]).tolist()
    return [Measured(f"{order}.drop", float(step), drop) for step, drop in zip(until, drops, strict=True)]


def summarise_odds(curves: Curves, *, order: str = "morf", **_: object) -> dict[str, Statistic]:
    """The mean over the shares: better low where the most relevant go first, else better high."""
    odds = curves.values[f"{order}.log_odds"].mean(axis=1)
    return {f"log-odds, {order}": Statistic.mean(odds, -1 if order == "morf" else 1)}


@register_protocol("log_odds", summarise=summarise_odds, reference="Shrikumar et al. 2017; Chen et al. 2019 (LOdds)")
def log_odds_of_removal(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    shares: Sequence[float] = (0.2,),
    unit: str = "patch",
    order: str = "morf",
    fill: str = "black",
    target: str = "explained",
) -> Evaluation:
    """How far the logarithm of the probability moves when a fixed share of the most (or least) relevant places goes.

    `unit`: whole patches, or pixels of the enlarged map.

    Raises:
        OptionError: for a word that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("unit", unit, ("pixel", "patch"))
    check_one_of("order", order, ORDERS)
    check_shares(shares)
    check_map(case, scores)
    asked = class_asked(case, target)
    places = places_of(case, scores, unit)
    turn = pixel_ranks(places, case.size, highest=order == "morf")
    until = [int(places.numel() * share) for share in shares]
    logits = yield perturbation_batch(Removal(case.image, filling(case, fill), turn, until))
    odds = log_odds(case.logits, logits.to(case.logits), asked, case.output).tolist()
    return [Measured(f"{order}.log_odds", float(share), value) for share, value in zip(shares, odds, strict=True)]


def summarise_drop(curves: Curves, **_: object) -> dict[str, Statistic]:
    """The mean drop (better low), share of increases and mean gain (both better high)."""
    return {
        "average drop": Statistic.mean(curves.single("drop"), -1),
        "average increase": Statistic.mean(curves.single("increase")),
        "average gain": Statistic.mean(curves.single("gain")),
    }


@register_protocol(
    "average_drop", summarise=summarise_drop, reference="Chattopadhyay et al. 2018 (Grad-CAM++); Zhang et al. 2024"
)
def average_drop(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    veil: str = "map",
    share: float | int = 0.5,
    fill: str = "zero",
    target: str = "explained",
) -> Evaluation:
    """How much of the confidence is left when the image is veiled by its own map.

    `veil`: "map", the image times the enlarged map from 0 to 1; or "top", the whole image where the highest `share` of
    the pixels lies and nothing elsewhere. `fill`: what lies under the veil; "zero" is x ⊙ m on the normalised image,
    "black" the same on pixels from 0 to 1.

    Raises:
        OptionError: for a word that is not known, or a share that is not between 0 and 1.
    """
    check_one_of("veil", veil, VEILS)
    check_shares((share,))
    check_map(case, scores)
    asked = class_asked(case, target)
    weights, ground = enlarged(scores, case.size), filling(case, fill)
    if veil == "top":
        weights = (pixel_ranks(weights, case.size) < int(weights.numel() * share)).to(weights.dtype)
    logits = yield LogitQuery(1, lambda _: veiled(case.image, weights, ground)[None])
    both = torch.stack([case.logits, logits[0].to(case.logits)])
    before, after = answers(case, both, asked, "probability")
    change = confidence_change(before, after)
    return [Measured(name, None, float(value)) for name, value in zip(change._fields, change, strict=True)]
