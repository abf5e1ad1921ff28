"""What the integrated methods hear in a backward pass: rows of the last layer's ∇A, and how much every head matters."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from .calls import Block, compute_dtype
from .weighting import Collector, Matrix

__all__ = ["LayerGradients", "RowGradientListener"]


@dataclass
class _RowGradients:
    """Collects some query rows of ∇A, per head."""

    rows: Int[Tensor, " rows"]
    total: Float[Tensor, "images heads rows keys"] = field(init=False)
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.total = like.new_zeros(images, heads, len(self.rows), keys, dtype=compute_dtype(like.dtype))

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        del attention
        inside = (self.rows >= block.rows.start) & (self.rows < block.rows.stop)
        self.total[block.images, block.heads][:, :, inside] = gradient[:, :, self.rows[inside] - block.rows.start]


@dataclass
class _HeadImportance:
    """Collects A_hᵀ ∇A_h over the query rows, whose mean size says how much head h matters."""

    total: Float[Tensor, "images heads keys keys"] = field(init=False)
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.total = like.new_zeros(images, heads, keys, keys, dtype=compute_dtype(like.dtype))

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        self.total[block.images, block.heads] += attention.transpose(-1, -2) @ gradient

    def result(self) -> Float[Tensor, "images heads"]:
        """I_h = mean_ij |A_hᵀ ∇A_h|."""
        return self.total.abs().mean(dim=(-1, -2))


@dataclass
class _Both:
    """Shows every block to two collectors."""

    rows: _RowGradients
    heads: _HeadImportance
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.rows.begin(images, heads, keys, like)
        self.heads.begin(images, heads, keys, like)

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        self.rows.add(block, attention, gradient)
        self.heads.add(block, attention, gradient)


class LayerGradients(NamedTuple):
    """Of one backward pass: rows of the last layer's ∇A, and by layer the importance I_h of the heads."""

    gradient: Float[Tensor, "images heads rows keys"]
    importance: dict[int, Float[Tensor, "images heads"]]


class RowGradientListener:
    """Keeps the query rows `rows` of layer `last`'s ∇A, and I_h of every layer where `head_importance` is asked for."""

    only_complete = False
    sums_queries = False

    def __init__(self, last: int, rows: Int[Tensor, " rows"], head_importance: bool = False) -> None:
        self.last, self.rows, self.head_importance = last, rows, head_importance
        self.importance: dict[int, Tensor] = {}
        self.gradient: Tensor | None = None

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        del readout
        self.importance, self.gradient = {}, None

    def result(self) -> LayerGradients:
        if self.gradient is None:
            raise RuntimeError(f"the backward pass has not reached attention {self.last}")
        return LayerGradients(self.gradient, self.importance)

    def collector(self, layer: int) -> Collector:
        if layer != self.last:
            return _HeadImportance()
        rows = _RowGradients(self.rows)
        return _Both(rows, _HeadImportance()) if self.head_importance else rows

    def take(self, layer: int, collector: Collector) -> None:
        if isinstance(collector, _Both):
            self.gradient, self.importance[layer] = collector.rows.total, collector.heads.result()
        elif isinstance(collector, _RowGradients):
            self.gradient = collector.total
        elif isinstance(collector, _HeadImportance):
            self.importance[layer] = collector.result()

    def current_row(self) -> Tensor:
        raise RuntimeError("gradients of single rows follow no relevance row")

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        raise RuntimeError("gradients of single rows are not taken from the fused backward")
