"""What each head of each layer adds to a relevance row: the row's growth, taken apart.

At layer l the row takes r ← r + (1/H) Σ_h r · (∇A_h ⊙ A_h). Here the summands are kept, one for each head, and with
them ‖∇A_h‖₁, by which GMAR weighs the heads: both from the one backward pass in which the row flows.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from .calls import Block
from .weighting import Collector, HeadNorms, Matrix, complete

__all__ = ["HeadShareListener", "HeadUpdates"]


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


class HeadShareListener:
    """Hears of every layer's heads, last layer first, and keeps the row up to date.

    Raises `RuntimeError` when it is asked before `begin`.
    """

    only_complete = False
    sums_queries = False

    def __init__(self) -> None:
        self._row: Tensor | None = None
        self._shares: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        self._row, self._shares = readout, {}

    def result(self) -> dict[int, tuple[Float[Tensor, "images heads keys"], Float[Tensor, "images heads"]]]:
        """By layer: what each head adds to the row, and the norm of its gradient."""
        return self._shares

    def current_row(self) -> Float[Tensor, "images tokens"]:
        if self._row is None:
            raise RuntimeError("begin() sets the readout before a backward pass")
        return self._row

    def collector(self, layer: int) -> HeadUpdates:
        del layer
        return HeadUpdates(self.current_row())

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, HeadUpdates)
        shares = collector.result()
        self._shares[layer] = shares, collector.norms.result()
        update, row = shares.sum(dim=1), self.current_row()
        # Where a few queries pool the tokens no residual leads on from them: the row is then the update alone.
        self._row = row + update if row.shape == update.shape else update

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        raise RuntimeError("the heads' shares are not taken from the fused backward, which sums over heads")
