"""A model's answer when its attention is given: logits, their gradients in the maps, and the maps of relevance."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import Block
from ..attention.relevance_row import RelevanceRow
from ..attention.tap import Tap, eager
from ..attention.visitors import Replacement
from ..models.vision_model import VisionModel

__all__ = ["Maps", "answer", "complete_row"]

# One map (1, heads, queries, keys) a layer; layers that pool the tokens have queries and heads of their own.
Maps: TypeAlias = list[Float[Tensor, "1 _ _ _"]]


def answer(
    model: VisionModel, image: Float[Tensor, "1 channels height width"], maps: Maps, classes: Sequence[int]
) -> tuple[Float[Tensor, " classes"], list[Maps]]:
    """Logits when attention l is `maps[l]`, and for each of `classes` the gradient of its logit in every map.

    The maps are leaves: nothing flows to queries and keys, which the model computes to no effect; values and all else
    follow from the running hidden states. One forward pass, one backward pass per class asked for.
    """
    leaves = [attention.detach().requires_grad_() for attention in maps]
    with torch.enable_grad():
        with eager(), Tap(Replacement(dict(enumerate(leaves))), images=1):
            logits = model.logits(image)[0]
        gradients = [
            list(torch.autograd.grad(logits[index], leaves, retain_graph=index != classes[-1], materialize_grads=True))
            for index in classes
        ]
    return logits.detach(), gradients


def complete_row(readout: Float[Tensor, "1 queries"], maps: Maps, gradients: Maps) -> Float[Tensor, "1 tokens"]:
    """The readout's row of Ā^L … Ā^1 less its own, with Ā^l = I + E_h[∇A^l ⊙ A^l] (Cui, Fan, Chen, Eq. 5).

    Example:
        >>> attention = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]])
        >>> complete_row(torch.tensor([[1.0, 0.0]]), [attention], [torch.ones(1, 1, 2, 2)])
        tensor([[0.2500, 0.7500]])
    """
    row = RelevanceRow("complete")
    row.begin(readout)
    for layer in reversed(range(len(maps))):
        images, heads, queries, keys = maps[layer].shape
        collector = row.collector(layer)
        collector.begin(images, heads, keys, maps[layer])
        collector.add(Block(slice(images), slice(heads), slice(queries)), maps[layer], gradients[layer])
        row.take(layer, collector)
    return row.result()
