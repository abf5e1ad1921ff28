"""Whole matrices of every layer, averaged over heads: what graphs of attention are made of."""

from jaxtyping import Float
from torch import Tensor

from .calls import Block, compute_dtype
from .weighting import Collector, Matrix

__all__ = ["GRADIENT_MATRICES", "MatrixListener"]

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


class MatrixListener:
    """Hears, layer by layer, the matrices that `kind` names: "gradient" or "attention_gradient"."""

    only_complete = False
    sums_queries = False

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.matrices: dict[int, Float[Tensor, "images queries keys"]] = {}

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        del readout
        self.matrices = {}

    def result(self) -> dict[int, Float[Tensor, "images queries keys"]]:
        """The matrices by layer."""
        return self.matrices

    def collector(self, layer: int) -> _MeanMatrix:
        del layer
        return _MeanMatrix(self.kind)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, _MeanMatrix)
        self.matrices[layer] = collector.result()

    def current_row(self) -> Tensor:
        raise RuntimeError("matrices follow no row")

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        raise RuntimeError("matrices are not taken from the fused backward")
