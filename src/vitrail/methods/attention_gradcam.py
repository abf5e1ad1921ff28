"""Class activation maps made of attention and its gradient at the readout's row r (row 0 for a class token).

`attn_gradcam` (as in Chefer, Gur, Wolf, CVPR 2021) takes the heads of the last block for channels:

    w_h = mean over patches j of (r ∇A_h)_j        map = (E_h[w_h r A_h])⁺

`bicam` sums E_h[r (∇A_h ⊙ A_h)] over blocks, with its sign. Neither is the Grad-CAM of `gradcam`, which weights the
channels of an activation.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import Block
from ..attention.listeners import BlockListener
from ..attention.relevance_row import Collector, RowUpdate, complete
from ..errors import OptionError
from .context import AttributionContext
from .registry import register_method

__all__ = ["attn_gradcam", "bicam"]


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


class LastAttention(BlockListener):
    """Listens to the one layer that is differentiated."""

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


@register_method(
    "bicam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Su and Luo 2026",
    accepts=("compete", "resolution"),
)
def bicam(context: AttributionContext, *, share: float = 2 / 3) -> Float[Tensor, "images targets tokens"]:
    """BiCAM: attention times value times gradient at the readout, signed, over the last two thirds of the blocks.

    `share` is the part of the blocks that is summed, the last ones. Nothing before them is differentiated.
    """
    if not 0 < share <= 1:
        raise OptionError(f"share={share} is the part of the blocks that is summed: it must lie in (0, 1]")
    layout = context.layout
    blocks = layout.layers - layout.pools
    first = blocks - math.ceil(share * blocks - 1e-9)
    every = torch.full((len(context.images), layout.tokens), 1 / layout.tokens).to(context.readout_row())
    rows = SummedRows(blocks, every) if layout.pools else SummedRows(layout.layers)
    return torch.stack(context.differentiate(rows, first_layer=first), dim=1)


class SummedRows:
    """Sums E_h[r · (∇A_h ⊙ A_h)] over the layers, r being the same in each; of the first `blocks` layers r is `every`,
    where given.
    """

    only_complete = True
    sums_queries = True

    def __init__(self, blocks: int, every: Float[Tensor, "images queries"] | None = None) -> None:
        self.blocks, self.every = blocks, every

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        self._readout, self._total = readout, None

    def current_row(self, layer: int) -> Float[Tensor, "images queries"]:
        return self._readout if self.every is None or layer >= self.blocks else self.every

    def collector(self, layer: int) -> RowUpdate:
        return RowUpdate(complete, self.current_row(layer), centred=False)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, RowUpdate)
        self.take_update(layer, collector.result())

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        del layer
        self._total = update if self._total is None else self._total + update

    def result(self) -> Float[Tensor, "images tokens"]:
        if self._total is None:
            raise RuntimeError("no backward pass has reached an attention since begin()")
        return self._total
