"""Positive and negative perturbation as a protocol: pixels or patches filled, or tokens really left out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...errors import OptionError
from ..case import Case
from ..perturbation import AREAS, SHARES, area, enlarged, outcome, ranking
from ..questions import Evaluation, Images, Measured, Tokens
from ..statistics import Curves, Statistic
from .fills import filling
from .registry import check_map, register_protocol

__all__ = ["UNITS", "WAYS", "perturbation"]

UNITS = ("pixel", "patch", "token")
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
    what a place shows instead (see `filling`; tokens have none). `auc`: the convention of the area.
    """
    if unit not in UNITS:
        raise OptionError(f"unit={unit!r} cannot be taken out; choose one of {', '.join(UNITS)}")
    if auc not in AREAS:
        raise OptionError(f"auc={auc!r} is no convention of an area; choose one of {', '.join(AREAS)}")
    check_map(case, scores)
    assert case.label is not None
    places = _places(case, scores, unit)
    original = case.logits
    label = torch.tensor(case.label, device=original.device)
    measured = []
    for way in WAYS:
        order = ranking(places.flatten(), highest=way == "positive")
        if unit == "token":
            answers = []
            for kept in _kept(order, shares):
                answers.append((yield Tokens(case.image, kept[None])))  # noqa: PERF401 (a comprehension may not yield)
            logits = torch.cat(answers)
        else:
            ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
            logits = yield _filled(case, ranks.view(places.shape), shares, fill)
        before = torch.stack([original] * len(shares))
        results = outcome(logits, label.expand(len(shares)), before)
        first = outcome(original[None], label[None], original[None])
        for measure, start, values in zip(results._fields, first, results, strict=True):
            measured += [
                Measured(f"{way}.{measure}", float(share), float(value))
                for share, value in zip((0.0, *shares), (start[0], *values), strict=True)
            ]
    return measured


def _places(case: Case, scores: Float[Tensor, "rows cols"], unit: str) -> Float[Tensor, "high wide"]:
    """The map on what is taken out: single pixels, or patches."""
    if unit == "pixel":
        return enlarged(scores, case.size)
    return adaptive_avg_pool2d(scores[None], case.grid)[0]


def _filled(case: Case, ranks: Int[Tensor, "high wide"], shares: Sequence[float], fill: str) -> Images:
    """The images with the first places of an order filled, a share each."""
    height, width = case.size
    rows, cols = ranks.shape
    ground = filling(case, fill)
    large = ranks.repeat_interleave(height // rows, 0).repeat_interleave(width // cols, 1).to(case.image.device)
    counts = torch.tensor([int(rows * cols * share) for share in shares], device=case.image.device)

    def make(steps: range) -> Float[Tensor, "steps channels height width"]:
        gone = large < counts[steps.start : steps.stop, None, None]
        return torch.where(gone[:, None], ground, case.image)

    return Images(len(shares), make)


def _kept(order: Int[Tensor, " patches"], shares: Sequence[float]) -> list[Int[Tensor, " kept"]]:
    """For each share the patches that stay, ascending."""
    return [order[int(len(order) * share) :].sort().values for share in shares]
