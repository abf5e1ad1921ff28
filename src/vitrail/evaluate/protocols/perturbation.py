"""Positive and negative perturbation as a protocol: pixels or patches filled, or tokens really left out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..perturbation import AREAS, SHARES, area, outcome
from ..questions import Evaluation, Measured
from .morf_lerf import UNITS, morf_lerf
from .options import check_one_of
from .registry import register_protocol

__all__ = ["UNITS", "WAYS", "perturbation"]

WAYS = ("positive", "negative")


def summarise(
    curves: Curves, *, auc: str = "bi", shares: Sequence[float] = SHARES, **_: object
) -> dict[str, Statistic]:
    """The area under the accuracy, for each way: positive better low, negative better high."""
    found = {}
    for way, better in zip(WAYS, (-1, 1), strict=True):
        hits = torch.from_numpy(curves.values[f"{way}.hit"])
        found[f"{way} AUC"] = Statistic.mean(area(hits, auc, shares=shares).numpy(), better)
    return found


@register_protocol(
    "perturbation", summarise=summarise, reference="Chefer, Gur, Wolf 2021 (CVPR); Chen et al. 2023", needs=("label",)
)
def perturbation(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    unit: str = "pixel",
    fill: str = "black",
    auc: str = "bi",
    shares: Sequence[float] = SHARES,
) -> Evaluation:
    """How often the true class still wins when the highest (positive) or lowest (negative) scores are taken out.

    `unit`: single pixels of the bilinearly enlarged map, whole patches, or tokens left out of the sequence. `fill`:
    what a place shows instead (see `filling`; tokens have none). `auc`: the convention of the area. `shares`: of the
    places, ascending; int(share · places) of them go.

    Raises:
        OptionError: for a unit, fill or convention that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("auc", auc, AREAS)
    assert case.label is not None
    logits = yield from morf_lerf(case, scores, unit, fill, shares)
    original = case.logits.expand(len(WAYS), 1, -1)
    curves = torch.cat([original, logits], dim=1)
    label = torch.full(curves.shape[:2], case.label, device=curves.device)
    results = outcome(curves, label, original.expand_as(curves), case.output)
    measured = []
    for measure, values in zip(results._fields, torch.stack(results).tolist(), strict=True):
        for way, row in zip(WAYS, values, strict=True):
            steps = zip((0.0, *map(float, shares)), row, strict=True)
            measured += [Measured(f"{way}.{measure}", step, value) for step, value in steps]
    return measured
