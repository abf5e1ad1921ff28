"""A visitor that puts given attention maps in the place of the model's own."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedAttentionError
from .calls import AttentionCall

__all__ = ["Replacement"]


class Replacement:
    """Attention of layer l is `maps[l]`, taken as it is (neither normalised nor clamped); other layers keep their own.

    A map broadcasts to (images, heads, queries, keys). Gradients flow into the maps where they ask for them, so they
    can be the variables of an optimisation (attention transfer) or points of an integral (DIX).

    Raises:
        UnsupportedAttentionError: when a map's shape does not fit its layer.
    """

    def __init__(self, maps: Mapping[int, Float[Tensor, "..."]]) -> None:
        self.maps = maps
        self.layers = 0

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        attention = self._next(torch.Size((call.images, call.heads, call.queries, call.keys)))
        return call.output() if attention is None else attention.to(call.value.dtype) @ call.value

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        attention = self._next(scores.shape)
        return torch.softmax(scores, dim=-1) if attention is None else attention.to(scores.dtype)

    def _next(self, shape: torch.Size) -> Tensor | None:
        layer, self.layers = self.layers, self.layers + 1
        attention = self.maps.get(layer)
        if attention is None:
            return None
        try:
            return attention.expand(shape)
        except RuntimeError:
            raise UnsupportedAttentionError(
                f"the map for attention {layer} has shape {tuple(attention.shape)}, but the layer's is {tuple(shape)} "
                "(images, heads, queries, keys): record the maps with the same images and model"
            ) from None
