"""Listeners that receive A and ∇A of each layer, last layer first: rows of ∇A, head norms and shares, mean matrices."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .calls import Block, compute_dtype
from .relevance_row import Collector, Matrix, QuerySum, complete

__all__ = [
    "GRADIENT_MATRICES",
    "BlockListener",
    "HeadNormListener",
    "HeadNorms",
    "HeadShareListener",
    "HeadUpdates",
    "LayerGradients",
    "MatrixListener",
    "PassedOn",
    "RowGradientListener",
]


class BlockListener:
    """Base of the listeners that need the blocks of A and ∇A themselves: the fused backward forms none."""

    only_complete = False
    sums_queries = False

    def current_row(self, layer: int) -> Float[Tensor, "images queries"]:
        del layer
        raise RuntimeError(f"{type(self).__name__} follows no relevance row")

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        del layer, update
        raise RuntimeError(f"{type(self).__name__} takes blocks of A and ∇A, not what the fused backward gives")


class PassedOn(BlockListener):
    """Keeps nothing of A and ∇A: for layers of which only the gradient that flows on is wanted."""

    def begin(self, readout: Float[Tensor, "images queries"]) -> None: ...

    def collector(self, layer: int) -> Collector:
        del layer
        return _Nothing()

    def take(self, layer: int, collector: Collector) -> None: ...

    def result(self) -> None: ...


class _Nothing:
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None: ...

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None: ...


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


class RowGradientListener(BlockListener):
    """Keeps the query rows `rows` of layer `last`'s ∇A, and I_h of every layer where `head_importance` is asked for."""

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


@dataclass
class HeadNorms:
    """Collects ‖∇A_h‖₁ or ‖∇A_h‖₂ over each head's whole matrix (Jo, Jang, Park 2025), block by block.

    `real` says which keys are no padding: ∇A does not vanish at padding, though A does.
    """

    order: int
    real: Bool[Tensor, "images keys"] | None = None
    total: Float[Tensor, "images heads"] = field(init=False)
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.total = like.new_zeros(images, heads, dtype=compute_dtype(like.dtype))

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        del attention
        power = gradient.abs() if self.order == 1 else gradient.square()
        if self.real is not None:
            power = power * self.real[block.images, None, None, :].to(power)
        self.total[block.images, block.heads] += power.sum(dim=(-1, -2)).to(self.total.dtype)

    def query_sum(self) -> QuerySum | None:
        return QuerySum(f"norm{self.order}") if self.order in (1, 2) else None

    def take_sum(self, total: Float[Tensor, "images heads keys"]) -> None:
        if self.real is not None:
            total = total * self.real[:, None].to(total)
        self.total = total.sum(dim=-1)

    def result(self) -> Float[Tensor, "images heads"]:
        return self.total if self.order == 1 else self.total.sqrt()


class HeadNormListener(BlockListener):
    """‖∇A_h‖₁ or ‖∇A_h‖₂ of every head of every layer, for GMAR; `order` is 1 or 2.

    `real` says which keys are no padding, where there is any.
    """

    sums_queries = True

    def __init__(self, order: int, real: Bool[Tensor, "images keys"] | None = None) -> None:
        self.order = order
        self.real = real
        self.norms: dict[int, Float[Tensor, "images heads"]] = {}

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        del readout
        self.norms = {}

    def result(self) -> dict[int, Float[Tensor, "images heads"]]:
        """Returns the norms by layer."""
        return self.norms

    def collector(self, layer: int) -> HeadNorms:
        del layer
        return HeadNorms(self.order, self.real)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, HeadNorms)
        self.norms[layer] = collector.result()


# What each head of each layer adds to a relevance row: the row's growth, taken apart.
#
# At layer l the row takes r ← r + (1/H) Σ_h r · (∇A_h ⊙ A_h). Here the summands are kept, one for each head, and with
# them ‖∇A_h‖₁, by which GMAR weighs the heads: both from the one backward pass in which the row flows.


@dataclass
class HeadUpdates:
    """Collects (1/H) r · (∇A_h ⊙ A_h) and ‖∇A_h‖₁ of every head h of one layer, block by block."""

    row: Float[Tensor, "images queries"]
    total: Float[Tensor, "images heads keys"] = field(init=False)
    norms: HeadNorms = field(init=False)
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.total = self.row.new_zeros(images, heads, keys)
        self.norms = HeadNorms(1)
        self.norms.begin(images, heads, keys, like)

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        self.norms.add(block, attention, gradient)
        weighted = complete(attention, gradient)
        row = self.row[block.images, None, None, block.rows].to(weighted.dtype)
        update = (row.expand(-1, weighted.shape[1], -1, -1) @ weighted)[:, :, 0]
        self.total[block.images, block.heads] += update.to(self.total.dtype)

    def result(self) -> Float[Tensor, "images heads keys"]:
        return self.total / self.total.shape[1]


class HeadShareListener(BlockListener):
    """Hears of every layer's heads, last layer first, and keeps the row up to date.

    Raises `RuntimeError` when it is asked before `begin`.
    """

    def __init__(self) -> None:
        self._row: Tensor | None = None
        self._shares: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        self._row, self._shares = readout, {}

    def result(self) -> dict[int, tuple[Float[Tensor, "images heads keys"], Float[Tensor, "images heads"]]]:
        """Returns by layer each head's addition to the row, and the norm of its gradient."""
        return self._shares

    def current_row(self, layer: int) -> Float[Tensor, "images tokens"]:
        del layer
        if self._row is None:
            raise RuntimeError("begin() sets the readout before a backward pass")
        return self._row

    def collector(self, layer: int) -> HeadUpdates:
        return HeadUpdates(self.current_row(layer))

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, HeadUpdates)
        shares = collector.result()
        self._shares[layer] = shares, collector.norms.result()
        update, row = shares.sum(dim=1), self.current_row(layer)
        # Where a few queries pool the tokens no residual leads on from them: the row is then the update alone.
        self._row = row + update if row.shape == update.shape else update


# Whole matrices of every layer, averaged over heads: what graphs of attention are made of.


GRADIENT_MATRICES = ("gradient", "attention_gradient")


class _MeanMatrix:
    """Collects E_h[(∇A_h)⁺] or E_h[(A_h ⊙ ∇A_h)⁺] of one layer, block by block."""

    every_row = False

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.heads = heads
        self.total = like.new_zeros(images, like.shape[-2], keys, dtype=compute_dtype(like.dtype))

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        kept = gradient.clamp(min=0)
        kept = kept * attention if self.kind == "attention_gradient" else kept
        self.total[block.images, block.rows] += kept.sum(dim=1).to(self.total.dtype)

    def result(self) -> Float[Tensor, "images queries keys"]:
        return self.total / self.heads


class MatrixListener(BlockListener):
    """Hears, layer by layer, the matrices that `kind` names: "gradient" or "attention_gradient"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.matrices: dict[int, Float[Tensor, "images queries keys"]] = {}

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        del readout
        self.matrices = {}

    def result(self) -> dict[int, Float[Tensor, "images queries keys"]]:
        """Returns the matrices by layer."""
        return self.matrices

    def collector(self, layer: int) -> _MeanMatrix:
        del layer
        return _MeanMatrix(self.kind)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, _MeanMatrix)
        self.matrices[layer] = collector.result()
