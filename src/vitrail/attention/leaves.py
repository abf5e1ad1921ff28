"""Attention as the model has it, with chosen layers made the leaves at which a gradient is asked for and ends."""

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall
from .gradient_modes import GradientMode
from .record import RecordedLayer

__all__ = ["LeafAttention"]


class LeafAttention:
    """The visitor under methods that need the gradient at few places: nothing before the first leaf is differentiated.

    At the layers of `at`, the output o = A V (for attention that a model writes out: A itself) becomes a leaf, kept in
    `leaves` beside the call in `layers`. The gradient flows through all other layers by the gradient mode. `reached` is
    told the number of each layer before its attention runs.
    """

    def __init__(
        self, gradient: GradientMode, at: Collection[int] = (), reached: Callable[[int], None] | None = None
    ) -> None:
        self.held = gradient != "full"
        self.at = frozenset(at)
        self.reached = reached
        self.count = 0
        self.leaves: dict[int, Tensor] = {}
        self.layers: dict[int, RecordedLayer] = {}

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        layer = self._next()
        if self.held:
            call = replace(call, query=call.query.detach(), key=call.key.detach())
        output = call.output()
        return self._leaf(layer, output, RecordedLayer(call.detached(), None)) if layer in self.at else output

    def attend_any(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float | None,
        grouped: bool,
    ) -> Tensor:
        """Attention within windows, which is never a leaf."""
        if self.held:
            query, key = query.detach(), key.detach()
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        layer = self._next()
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
