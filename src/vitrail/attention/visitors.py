"""Visitors that compute attention: with leaves of the graph, with whole maps inside it, or with given maps.

The tap hands each of them every attention of a forward pass, in the order of the layers.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..errors import UnsupportedAttentionError, UnsupportedOperationError
from .calls import AnyCall, AttentionCall, probabilities
from .gradient_modes import GradientMode, holds_attention
from .record import RecordedLayer
from .relevance_row import attention_backward, softened_backward

__all__ = ["DenseAttention", "LeafAttention", "Replacement"]


class LeafAttention:
    """The visitor under methods that need the gradient at few places: nothing before the first leaf is differentiated.

    At the layers of `at`, the output o = A V (for attention that a model writes out: A itself) becomes a leaf, kept in
    `leaves` next to the call in `layers`. The gradient flows through all other layers by the gradient mode. `reached`
    is told the number of each layer before its attention runs.
    """

    def __init__(
        self, gradient: GradientMode, at: Collection[int] = (), reached: Callable[[int], None] | None = None
    ) -> None:
        self.held = holds_attention(gradient)
        self.softened = gradient == "gim"
        self.at = frozenset(at)
        self.reached = reached
        self.count = 0
        self.leaves: dict[int, Tensor] = {}
        self.layers: dict[int, RecordedLayer] = {}

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        layer = self._next()
        if self.held:
            call = replace(call, query=call.query.detach(), key=call.key.detach())
        output = _softened_output(call) if self.softened else call.output()
        return self._leaf(layer, output, RecordedLayer(call.detached(), None)) if layer in self.at else output

    def attend_any(self, call: AnyCall) -> Tensor:
        """Computes attention within windows, which is never a leaf."""
        if self.softened:
            raise UnsupportedOperationError(
                f"gradient='gim' differentiates attention in its own way, and attention {self.count} works on tensors "
                f"of {call.query.dim()} dimensions: use gradient='full' or 'libra'"
            )
        held = call._replace(query=call.query.detach(), key=call.key.detach()) if self.held else call
        return held.output()

    def normalise_any(self, scores: Float[Tensor, "*groups queries keys"]) -> Float[Tensor, "*groups queries keys"]:
        """Computes probabilities within windows, which are never leaves."""
        return torch.softmax(scores.detach() if self.held else scores, dim=-1)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        layer = self._next()
        if self.softened:
            attention = _SoftenedSoftmax.apply(scores)  # pyright: ignore
        else:
            attention = torch.softmax(scores.detach() if self.held else scores, dim=-1)
        return self._leaf(layer, attention, RecordedLayer(None, attention.detach())) if layer in self.at else attention

    def _next(self) -> int:
        layer, self.count = self.count, self.count + 1
        if self.reached is not None:
            self.reached(layer)
        return layer

    def _leaf(self, layer: int, tensor: Tensor, record: RecordedLayer) -> Tensor:
        leaf = tensor.detach().requires_grad_(torch.is_grad_enabled())
        self.leaves[layer], self.layers[layer] = leaf, record
        # The tap takes a leaf that asks for a gradient for a weight; a copy is none.
        return leaf.clone()


class _SoftenedAttention(Function):
    """Forward: the fused kernel. Backward: what the gradient mode `gim` takes for the gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rest = call.mask, call.causal, call.scale, call.windows
        return call.output()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_query, to_key, to_value, _ = ctx.needs_input_grad
        call = AttentionCall(*ctx.saved_tensors, *ctx.rest)
        flow = attention_backward(
            call, grads[0], through_scores=to_query or to_key, through_value=to_value, softened=True
        )
        return *flow, None


def _softened_output(call: AttentionCall) -> Tensor:
    return _SoftenedAttention.apply(call.query, call.key, call.value, call)  # pyright: ignore


class _SoftenedSoftmax(Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        attention = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(attention)
        return attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (attention,) = ctx.saved_tensors
        return softened_backward(attention, grads[0])


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
