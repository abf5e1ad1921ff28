"""Grad-CAM on the last attention map (as in Chefer, Gur, Wolf, CVPR 2021): channels are its heads.

    w_h = mean over patches j of (r ∇A_h)_j        map = (E_h[w_h r A_h])⁺

of the last block, r being the readout's row (row 0 for a class token). Not the Grad-CAM of `gradcam`, which weights the
channels of an activation.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import Block
from ..attention.relevance_row import Collector
from .context import AttributionContext
from .registry import register_method

__all__ = ["attn_gradcam"]


@dataclass
class RowsOfHeads:
    """Collects r A_h and r ∇A_h of every head."""

    row: Float[Tensor, "images queries"]
    attention: Float[Tensor, "images heads keys"] = field(init=False)
    gradient: Float[Tensor, "images heads keys"] = field(init=False)
    every_row = True  # r A is asked for where ∇A is zero, too

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        del like
        self.attention = self.row.new_zeros(images, heads, keys)
        self.gradient = self.row.new_zeros(images, heads, keys)

    def add(self, block: Block, attention: Tensor, gradient: Tensor) -> None:
        row = self.row[block.images, None, None, block.rows].to(attention.dtype)
        some = block.images, block.heads
        self.attention[some] += (row @ attention).squeeze(2).to(self.row.dtype)
        self.gradient[some] += (row @ gradient).squeeze(2).to(self.row.dtype)


class LastAttention:
    """Listens to the one layer that is differentiated."""

    only_complete = False
    sums_queries = False

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        self._readout = readout

    def collector(self, layer: int) -> RowsOfHeads:
        del layer
        return RowsOfHeads(self._readout)

    def take(self, layer: int, collector: Collector) -> None:
        del layer
        assert isinstance(collector, RowsOfHeads)
        self._heard = collector

    def result(self) -> RowsOfHeads:
        return self._heard

    def current_row(self, layer: int) -> Tensor:
        del layer
        raise RuntimeError("the rows of single heads do not come from the fused backward")

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        del layer, update
        raise RuntimeError("the rows of single heads do not come from the fused backward")


@register_method(
    "attn_gradcam",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F and the last block's B",
    reference="Chefer, Gur, Wolf, CVPR 2021 (after Selvaraju et al. 2017)",
    start_layer=-1,
    accepts=("compete",),
)
def attn_gradcam(context: AttributionContext, *, relu: bool = True) -> Float[Tensor, "images targets tokens"]:
    """Grad-CAM on the last attention: heads weighted by their mean gradient at the readout, and clamped at zero.

    Only the last block is differentiated. `relu=False` keeps what is below zero.
    """
    maps = []
    for rows in context.differentiate(LastAttention()):
        patches = slice(context.layout.prefix, context.layout.prefix + context.layout.patches)
        if context.layout.pools:
            patches = slice(None) if rows.gradient.shape[2] != context.layout.tokens else patches
        weights = rows.gradient[:, :, patches].mean(dim=2, keepdim=True)
        scores = (weights * rows.attention).mean(dim=1)
        maps.append(scores.clamp(min=0) if relu else scores)
    return torch.stack(maps, dim=1)
