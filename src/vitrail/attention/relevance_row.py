"""Relevance as one row that flows backward: at layer l, r ← r + (1/H) Σ_h r · (f(∇A_h) ⊙ A_h).

Autograd reaches the layers from last to first, which is the order of the product Ā^L … Ā^1 read at one row. So the
rule stands in the backward pass of attention, and each layer is forgotten as soon as it is passed.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .weighting import ELEMENTWISE, ClampedMeanUpdate, Collector, ElementwiseRule, HeadNorms, RowUpdate

__all__ = ["HeadNormListener", "RelevanceRow", "add_update"]


def add_update(
    row: Float[Tensor, "images queries"], update: Float[Tensor, "images keys"]
) -> Float[Tensor, "images keys"]:
    """r + update for self-attention; the update alone where a few queries pool the tokens (no residual joins them)."""
    return row + update if row.shape == update.shape else update


class RelevanceRow:
    """The readout's row of Ā^L … Ā^l, kept up to date while the backward pass runs; what it hears of is the row less I.

    `rule` is "complete" (Eq. 5), "positive" (GAE, Eq. 4) or "absolute" (Eq. 6), or a function of its own of A and ∇A;
    `centred` first takes out of ∇A its mean under A; `clamp_mean` clamps the heads' mean of ∇A ⊙ A instead of every
    head.

    The row is kept in two parts, the readout itself (the row of the identity) and what the layers have added to it.
    Where a head reads the mean of P patches, the identity is 1/P on every patch, hundreds of times what the layers add,
    and says nothing of the class: kept apart, it neither tints the map nor eats its digits.
    """

    def __init__(self, rule: str | ElementwiseRule, centred: bool = False, clamp_mean: bool = False) -> None:
        self.rule = ELEMENTWISE[rule] if isinstance(rule, str) else rule
        self.only_complete = rule == "complete" and not centred and not clamp_mean
        self.sums_queries = self.rule in ELEMENTWISE.values() and not clamp_mean
        self.centred, self.clamp_mean = centred, clamp_mean
        self._identity: Tensor | None = None
        self._added: Tensor | None = None

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        """Start a backward pass from the readout's row."""
        self._identity, self._added = readout, None

    def result(self) -> Float[Tensor, "images tokens"]:
        """What all layers have added to the readout's row: the row of Ā^L … Ā^1 − I."""
        if self._added is None:
            raise RuntimeError("no backward pass has reached an attention since begin()")
        return self._added

    def current_row(self) -> Float[Tensor, "images tokens"]:
        """The whole row as it stands, the identity's part included."""
        if self._identity is None:
            raise RuntimeError("begin() sets the readout before a backward pass")
        return self._identity if self._added is None else self._identity + self._added

    def collector(self, layer: int) -> RowUpdate | ClampedMeanUpdate:
        del layer
        if self.clamp_mean:
            return ClampedMeanUpdate(self.current_row(), self.centred)
        return RowUpdate(self.rule, self.current_row(), self.centred)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, RowUpdate | ClampedMeanUpdate)
        self.take_update(layer, collector.result())

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        del layer
        if update.shape != self.current_row().shape:
            # A few queries pool the tokens: no residual leads from them to the tokens, so the identity ends here.
            self._identity, self._added = torch.zeros_like(update), update
        else:
            self._added = update if self._added is None else self._added + update


class HeadNormListener:
    """‖∇A_h‖₁ or ‖∇A_h‖₂ of every head of every layer, for GMAR; `order` is 1 or 2.

    `real` says which keys are no padding, where there is any.
    """

    only_complete = False
    sums_queries = True

    def __init__(self, order: int, real: Bool[Tensor, "images keys"] | None = None) -> None:
        self.order = order
        self.real = real
        self.norms: dict[int, Float[Tensor, "images heads"]] = {}

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        del readout
        self.norms = {}

    def result(self) -> dict[int, Float[Tensor, "images heads"]]:
        """The norms by layer."""
        return self.norms

    def collector(self, layer: int) -> HeadNorms:
        del layer
        return HeadNorms(self.order, self.real)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, HeadNorms)
        self.norms[layer] = collector.result()

    def current_row(self) -> Tensor:
        raise RuntimeError("head norms follow no row")

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        raise RuntimeError("head norms are not taken from the fused backward")
