"""How often the model is right, on scenes it has not seen."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.model import SIZE, normalised


class Accuracy(NamedTuple):
    """Shares in [0, 1]: singles with the class on top, pairs with both on top, and how many scenes of each."""

    single: float
    pair: float
    scenes: int


def evaluate(model: nn.Module, *, seed: int = 2**20, count: int = 1000, batch: int = 100) -> Accuracy:
    """Top-1 accuracy on `count` held-out singles and top-two accuracy on as many pairs, drawn from `seed`.

    The seed must be no seed of a training pool (`train` uses small ones); the model is used as it is, in evaluation
    mode.

    >>> from vitrail.bestiary.model import build_model
    >>> 0 <= evaluate(build_model().eval(), count=4).single <= 1
    True
    """
    hits = {"single": 0, "pair": 0}
    for kind in hits:
        data = Bestiary(kind, SIZE, count, seed)
        for start in range(0, count, batch):
            items = [data[index] for index in range(start, min(start + batch, count))]
            labels = torch.stack([item["label"] for item in items]).view(len(items), -1)
            logits = predict(model, torch.stack([item["image"] for item in items]))
            best = logits.topk(labels.shape[1], dim=1).indices
            hits[kind] += int((best.sort(dim=1).values == labels.sort(dim=1).values).all(dim=1).sum())
    return Accuracy(hits["single"] / count, hits["pair"] / count, count)


@torch.no_grad()
def predict(model: nn.Module, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch classes"]:
    """Logits of images with values in [0, 1], as `Bestiary` gives them."""
    return model(normalised(images))
