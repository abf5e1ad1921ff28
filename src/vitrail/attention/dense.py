"""Attention as whole maps inside the graph, some of them given instead of the model's own."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedOperationError
from .calls import AttentionCall, probabilities

__all__ = ["DenseAttention"]


class DenseAttention:
    """Keeps every layer's A so that ∂s/∂A can be asked for; layer l is `given[l]`, where given, as it is.

    Nothing before layer `first` is differentiated, nor anything that leads to a given map. With `held` no gradient
    flows through any A to queries and keys. `reached` is told the number of each layer as it comes up. A pass taken up
    in the middle of the model starts at layer `count`.
    """

    def __init__(
        self,
        first: int,
        held: bool,
        given: Mapping[int, Float[Tensor, "images heads queries keys"]] | None = None,
        reached: Callable[[int], None] | None = None,
        count: int = 0,
    ) -> None:
        self.first, self.held = first, held
        self.given = given or {}
        self.reached = reached
        self.count = count
        self.maps: dict[int, Float[Tensor, "images heads queries keys"]] = {}

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        layer = self._next()
        size = torch.Size((call.images, call.heads, call.queries, call.keys))
        attention = self._given(layer, size)
        if attention is None:
            attention = probabilities(call.detached() if self.held or layer < self.first else call)
        value = call.value.detach() if layer < self.first else call.value
        return self._keep(layer, attention).to(value.dtype) @ value

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        layer = self._next()
        attention = self._given(layer, scores.shape)
        if attention is None:
            attention = torch.softmax(scores.detach() if self.held or layer < self.first else scores, dim=-1)
        # The tap takes a leaf that asks for a gradient for a weight; a view of it is none.
        return self._keep(layer, attention).to(scores.dtype).view_as(scores)

    def _next(self) -> int:
        layer, self.count = self.count, self.count + 1
        if self.reached is not None:
            self.reached(layer)
        return layer

    def _given(self, layer: int, size: torch.Size) -> Tensor | None:
        attention = self.given.get(layer)
        if attention is not None and attention.shape != size:
            raise UnsupportedOperationError(
                f"attention {layer} is {tuple(size)} (images, heads, queries, keys) and the map to put in its place "
                f"{tuple(attention.shape)}: the two layers are of different shape"
            )
        return attention

    def _keep(self, layer: int, attention: Tensor) -> Tensor:
        if torch.is_grad_enabled() and layer >= self.first and not attention.requires_grad:
            attention = attention.detach().requires_grad_()
        self.maps[layer] = attention
        return attention
