"""The paper's perturbation experiment: photographs stitched to a guide, and patches removed by two rankings.

Each photograph is squashed into one half of the model's input, the guide into the other, and the photograph's class is
explained. Patches of the model's own size go to black before normalisation, and it is counted how often the class still
wins. Where the complete gradient finds the guide (blue), taking out the lowest first clears the guide away and the
answer *gets better*. Three controls tell how much of that is knowing where the guide is:

    gae − gae(guide)       GAE with signs: the map of the guide's class taken from that of the photograph's
    the guide stays        only patches of the photograph's own half may go, so finding the guide gains nothing
    alone                  the same with the guide all black: the maps are of the stitched picture still, but
                           the class has a chance to be seen
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ..errors import ModelError
from ..explain import explain
from ..guidance.stitching import plan_stitch
from ..metrics.faithfulness.perturbation import SHARES, WAYS, area
from ..metrics.faithfulness.stitched_perturbation import REGIONS, stitched_removal, without
from ..metrics.removal import perturbation_batch
from ..models.layout import layout_of
from ..models.vision_model import VisionModel
from ..provenance import Stitch

__all__ = [
    "MAPS",
    "RANDOM",
    "REGIONS",
    "WAYS",
    "Curve",
    "Stitched",
    "areas",
    "curves_of",
    "stitch_pictures",
    "stitched_maps",
]

CONTROL = "gae − gae(guide)"
MAPS = ("complete", "gae", CONTROL)
RANDOM = "random"


class Curve(NamedTuple):
    """What was ranked, what went first, and what may go."""

    map: str
    way: str
    region: str


@dataclass(frozen=True, eq=False)
class Stitched:
    """One photograph stitched to the guide: pixels from 0 to 1, normalised input, and where each of them lies."""

    pixels: Float[Tensor, "3 height width"]
    normalised: Float[Tensor, "3 height width"]
    plan: Stitch

    @property
    def own(self) -> Bool[Tensor, "rows cols"]:
        """Returns the patches of the photograph's own half."""
        half = torch.zeros(self.plan.grid, dtype=torch.bool)
        half[self.plan.original.slices()] = True
        return half

    @property
    def far(self) -> Bool[Tensor, "rows cols"]:
        """Returns the patches of the guide's half."""
        half = torch.zeros(self.plan.grid, dtype=torch.bool)
        half[self.plan.guide.slices()] = True
        return half


def stitch_pictures(model: VisionModel, photograph: Image.Image, guide: Image.Image) -> Stitched:
    """Returns both pictures squashed whole into half of the model's input each, the photograph on the left.

    Raises:
        ModelError: for a model without preprocessing.
    """
    preprocess = model.preprocess
    if preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so no pictures can be stitched for it")
    height, width = preprocess.size
    layout = layout_of(model, model.blank())
    patch = (height // layout.rows, width // layout.cols)
    plan = plan_stitch("side", "left", "squash", grid=(layout.rows, layout.cols), patch=patch)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = mean.expand(-1, height, width).clone()
    for picture, box in ((photograph, plan.original), (guide, plan.guide)):
        rows, cols = box.slices(patch)
        half = replace(preprocess.squashed(), size=(box.rows * patch[0], box.cols * patch[1]))
        pixels[:, rows, cols] = half(picture) * std + mean
    return Stitched(pixels, (pixels - mean) / std, plan)


def stitched_maps(
    model: VisionModel, stitched: Stitched, label: int, guide_class: int, options: Mapping[str, Any]
) -> dict[str, Float[Tensor, "rows cols"]]:
    """Returns the maps that are compared; `options` are those of `explain`, such as the gradient mode."""
    batch = stitched.normalised[None]
    options = {"gradient": "full", **options}
    gae = explain(model, batch, [[label, guide_class]], method="gae", **options).scores[0].float()
    complete = explain(model, batch, label, method="complete", **options).scores[0].float()
    return {"complete": complete, "gae": gae[0], CONTROL: gae[0] - gae[1]}


def curves_of(
    model: VisionModel,
    stitched: Stitched,
    label: int,
    maps: Mapping[str, Float[Tensor, "rows cols"]],
    *,
    generator: torch.Generator,
    batch_size: int = 32,
    logits_of: Callable[[Tensor], Tensor] | None = None,
) -> dict[Curve, Float[Tensor, " steps"]]:
    """Returns whether the label wins at 0 %, 10 % … 90 %, for every map and region, both ways, and for a random
    order.
    """
    preprocess = model.preprocess
    assert preprocess is not None
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    asked = [Curve(name, way, region) for name in maps for way in WAYS for region in REGIONS]
    asked += [Curve(RANDOM, RANDOM, REGIONS[0])]
    ranked = {**maps, RANDOM: torch.rand(stitched.plan.grid, generator=generator)}
    pixels, black = stitched.pixels, torch.zeros_like(stitched.pixels)
    whole = torch.stack([pixels, without(pixels, stitched.far, black)])
    removals = [
        stitched_removal(
            pixels,
            ranked[one.map],
            WAYS[0] if one.way == RANDOM else one.way,
            one.region,
            own=stitched.own,
            far=stitched.far,
            ground=black,
        )
        for one in asked
    ]
    perturbed = perturbation_batch(*removals)
    ask = logits_of or model.logits
    with torch.no_grad():
        steps = range(0, perturbed.count, batch_size)
        made = (perturbed.make(range(k, min(k + batch_size, perturbed.count))) for k in steps)
        wins = torch.cat([ask((some - mean) / std).argmax(dim=1).cpu() for some in (whole, *made)]) == label
    hits = wins.to(torch.float64)
    rows = hits[2:].reshape(len(asked), len(SHARES))
    first = {region: hits[1:2] if region == REGIONS[2] else hits[:1] for region in REGIONS}
    return {one: torch.cat([first[one.region], row]) for one, row in zip(asked, rows, strict=True)}


def areas(curves: Sequence[Float[Tensor, " steps"]], convention: str = "bi") -> list[float]:
    """Returns the area under each photograph's curve."""
    return area(torch.stack(list(curves)), convention).tolist()
