"""Which parts of an image argue for a class, found without any map: parts are made black, and the logits read again.

The figures' maps are held against this. Where a map and the model disagree, a figure's verdict says so; how far black
parts are from what the model was trained on is not known, so the numbers of a few images illustrate and prove nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..counterfactual.transfer_result import Transfer
from ..errors import ModelError
from ..explanation import Explanation
from ..inputs import prepare
from ..models.layout import layout_of
from ..models.vision_model import VisionModel

__all__ = [
    "Effects",
    "blackened",
    "both_ways",
    "cell_effects",
    "ends_removed",
    "in_cells",
    "mean_of",
    "on_object",
    "share",
    "signs",
    "whereabouts",
]

ACROSS = 7  # cells along a side, about
ARGUING = 0.25  # the share of cells that count as arguing for a class
BATCH = 16
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Effects:
    """How far each logit falls when a cell of the image is black; cells are blocks of patches."""

    drops: Float[Tensor, "classes rows cols"]

    def arguing(self, target: int, other: int | None = None) -> Bool[Tensor, "rows cols"]:
        """Returns the quarter of the cells whose loss costs the target most, or costs it most compared with `other`.

        Cells whose loss costs it nothing are never among them.
        """
        worth = self.drops[target] if other is None else self.drops[target] - self.drops[other]
        best = worth.flatten().topk(max(round(ARGUING * worth.numel()), 1)).indices
        chosen = torch.zeros(worth.numel(), dtype=torch.bool)
        chosen[best] = True
        return chosen.view(worth.shape) & (worth > 0)


def cell_effects(model: VisionModel, path: Path) -> Effects:
    """Makes each cell of an image black, one at a time, and returns the fall of every logit.

    Raises:
        ModelError: for a model without preprocessing.
    """
    batch = prepare(model, path).batch
    layout = layout_of(model, batch)
    block = max(round(min(layout.rows, layout.cols) / ACROSS), 1)
    rows, cols = -(-layout.rows // block), -(-layout.cols // block)
    cell = torch.arange(layout.rows)[:, None] // block * cols + torch.arange(layout.cols) // block
    masks = (cell == number for number in range(rows * cols))
    logits = blackened(model, batch, [torch.zeros_like(cell, dtype=torch.bool), *masks])
    return Effects((logits[:1] - logits[1:]).T.reshape(-1, rows, cols))


def blackened(
    model: VisionModel, batch: Float[Tensor, "1 channels height width"], masks: list[Bool[Tensor, "rows cols"]]
) -> Float[Tensor, "masks classes"]:
    """Returns the logits of the image with the patches of each mask made black, before normalisation.

    Raises:
        ModelError: for a model without preprocessing.
    """
    preprocess = model.preprocess
    if preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so it is not known what black is to it")
    mean, std = (torch.tensor(values).view(-1, 1, 1).to(batch) for values in (preprocess.mean, preprocess.std))
    height, width = batch.shape[-2:]

    def pixels(mask: Tensor) -> Tensor:
        rows, cols = (torch.arange(height) * len(mask) // height, torch.arange(width) * mask.shape[1] // width)
        return mask[rows][:, cols].to(batch.device)

    def some() -> Iterator[Tensor]:
        for start in range(0, len(masks), BATCH):
            images = [torch.where(pixels(mask), -mean / std, batch[0]) for mask in masks[start : start + BATCH]]
            yield model.logits(torch.stack(images)).float().cpu()

    with torch.no_grad():
        return torch.cat(list(some()))


def in_cells(scores: Float[Tensor, "tall wide"], like: Tensor) -> Float[Tensor, "rows cols"]:
    """Returns a map of patches or pixels as means over cells; the last two axes of `like` are those of the cells."""
    rows, cols = like.shape[-2:]
    return adaptive_avg_pool2d(scores.double().cpu()[None], (rows, cols))[0]


def share(scores: Float[Tensor, "tall wide"], cells: Bool[Tensor, "rows cols"], sign: int) -> float:
    """Returns the share of some cells at which a map has this sign; NaN where there are no cells.

    Example:
        >>> share(torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]]), -1)
        0.5
    """
    return float((sign * in_cells(scores, cells)[cells] > 0).double().mean())


def signs(scores: Float[Tensor, "tall wide"], effects: Effects, target: int, other: int) -> dict[str, float]:
    """Returns how much of what argues for the target is positive, and of what argues for the other class negative."""
    return {
        "own above zero": share(scores, effects.arguing(target, other), 1),
        "other below zero": share(scores, effects.arguing(other, target), -1),
    }


def both_ways(ex: Explanation, effects: Effects) -> dict[str, float]:
    """Returns the mean of `signs` over every two classes of an explanation with one row for each class."""
    index = ex.target.tolist()
    pairs = permutations(range(len(ex)), 2)
    return mean_of([signs(ex.map(one), effects, index[one], index[other]) for one, other in pairs])


def on_object(scores: Float[Tensor, "tall wide"], cells: Bool[Tensor, "rows cols"]) -> dict[str, float]:
    """Returns what a map says of the cells that argue for its class.

    That is the share of them that is negative, the share of positive relevance that lies there, and how much of the
    image they are.
    """
    positive = in_cells(scores, cells).clamp(min=0)
    energy = float(positive[cells].sum() / positive.sum().clamp(min=TINY))
    return {"below zero": share(scores, cells, -1), "energy": energy, "size": float(cells.double().mean())}


def ends_removed(
    model: VisionModel, path: Path, scores: Float[Tensor, "rows cols"], pair: tuple[int, int]
) -> dict[str, float]:
    """Returns how the difference of two logits changes when the reddest, or the bluest, tenth of a map is black."""
    count = max(scores.numel() // 10, 1)
    order = scores.flatten().argsort()
    masks = torch.zeros(3, scores.numel(), dtype=torch.bool)
    masks[1, order[-count:]] = True
    masks[2, order[:count]] = True
    logits = blackened(model, prepare(model, path).batch, list(masks.view(3, *scores.shape)))
    gap = (logits[:, pair[0]] - logits[:, pair[1]]).tolist()
    return {"without the reddest": gap[1] - gap[0], "without the bluest": gap[2] - gap[0]}


def whereabouts(found: Transfer, effects: Effects) -> dict[str, dict[str, dict[str, float]]]:
    """Returns, for the maps of target and opposing class, the sums over what argues for either, by step.

    Each is a share of the map's absolute scores: above zero where there is more red than blue.
    """
    pair = (found.target, found.opposing)
    places = {"target": effects.arguing(*pair), "opposing": effects.arguing(*pair[::-1])}
    told: dict[str, dict[str, dict[str, float]]] = {}
    for number, name in enumerate(places):
        maps = {step: in_cells(found.maps[place, number], effects.drops) for place, step in enumerate(found.snapshots)}
        told[name] = {
            where: {str(step): float(one[cells].sum() / one.abs().sum().clamp(min=TINY)) for step, one in maps.items()}
            for where, cells in places.items()
        }
    return told


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each number over several dictionaries of the same keys; NaN is left out.

    Example:
        >>> mean_of([{"a": 1.0}, {"a": 2.0}, {"a": float("nan")}])
        {'a': 1.5}
    """
    known = {key: [row[key] for row in rows if not math.isnan(row[key])] for key in rows[0]}
    return {key: sum(values) / len(values) if values else math.nan for key, values in known.items()}
