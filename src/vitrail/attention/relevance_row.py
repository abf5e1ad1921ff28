"""Relevance as one row that flows backward: at layer l, r ← r + (1/H) Σ_h r · (f(∇A_h) ⊙ A_h).

Autograd reaches the layers from last to first, which is the order of the product Ā^L … Ā^1 read at one row. So the
rule stands in the backward pass of attention, and each layer is forgotten as soon as it is passed. The formulas
f(∇A) ⊙ A and their collectors work on blocks of query rows, so that no layer's whole matrix is ever needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import Block

__all__ = [
    "ELEMENTWISE",
    "ClampedMeanUpdate",
    "Collector",
    "ElementwiseRule",
    "QuerySum",
    "RelevanceRow",
    "RowUpdate",
    "SummingCollector",
    "absolute",
    "add_update",
    "centre",
    "complete",
    "positive",
]

Matrix: TypeAlias = Float[Tensor, "images heads rows keys"]
ElementwiseRule: TypeAlias = Callable[[Matrix, Matrix], Matrix]


def complete(attention: Matrix, gradient: Matrix) -> Matrix:
    """∇A ⊙ A, signed (Cui, Fan, Chen, Eq. 5)."""
    return gradient * attention


def positive(attention: Matrix, gradient: Matrix) -> Matrix:
    """(∇A)⁺ ⊙ A (Chefer, Gur, Wolf 2021, GAE; Eq. 4 of Cui, Fan, Chen). A ≥ 0, so this is (∇A ⊙ A)⁺."""
    return gradient.clamp(min=0).mul_(attention)


def absolute(attention: Matrix, gradient: Matrix) -> Matrix:
    """|∇A| ⊙ A (Cui, Fan, Chen, Eq. 6)."""
    return gradient.abs().mul_(attention)


def centre(attention: Matrix, gradient: Matrix) -> Matrix:
    """∇A less its mean under A in every row: the part of the gradient that a softmax can follow."""
    return gradient - (attention * gradient).sum(dim=-1, keepdim=True)


ELEMENTWISE: dict[str, ElementwiseRule] = {"complete": complete, "positive": positive, "absolute": absolute}


@runtime_checkable
class Collector(Protocol):
    """Is shown every block of A and ∇A of one layer, and keeps what it needs of them."""

    @property
    def every_row(self) -> bool:
        """Whether it must be shown query rows of which ∇A is zero, too; where not, they may be left out, or shown."""
        ...

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None: ...

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None: ...


class QuerySum(NamedTuple):
    """Σ_i r_i f(A_hij, ∇A_hij) for every head h and key j: f by its name, r the row (None: ones)."""

    function: str
    row: Float[Tensor, "images queries"] | None = None
    centred: bool = False


@runtime_checkable
class SummingCollector(Collector, Protocol):
    """A collector that can also do with one sum over the queries, and so needs no block of A or ∇A."""

    def query_sum(self) -> QuerySum | None:
        """The sum that it can do with; None where its function has no name."""
        ...

    def take_sum(self, total: Float[Tensor, "images heads keys"]) -> None:
        """The sum, in place of `begin` and all `add`."""
        ...


@dataclass
class RowUpdate:
    """Collects (1/H) Σ_h r · (f(∇A_h) ⊙ A_h) block by block, for a relevance row r per image."""

    rule: ElementwiseRule
    row: Float[Tensor, "images queries"]
    centred: bool
    total: Float[Tensor, "images keys"] = field(init=False)
    heads: int = field(init=False)

    @property
    def every_row(self) -> bool:
        """A rule of somebody's own may make something of a ∇A that is zero."""
        return self.rule not in ELEMENTWISE.values()

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.heads = heads
        self.total = self.row.new_zeros(images, keys)

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        if self.centred:
            gradient = centre(attention, gradient)
        weighted = self.rule(attention, gradient)
        row = self.row[block.images, None, None, block.rows].to(weighted.dtype)
        # (images, heads, 1, rows) @ (images, heads, rows, keys): one pass over the block, then the heads are summed.
        update = (row.expand(-1, weighted.shape[1], -1, -1) @ weighted).sum(dim=(1, 2))
        self.total[block.images] += update.to(self.total.dtype)

    def query_sum(self) -> QuerySum | None:
        names = [name for name, rule in ELEMENTWISE.items() if rule is self.rule]
        return QuerySum(names[0], self.row, self.centred) if names else None

    def take_sum(self, total: Float[Tensor, "images heads keys"]) -> None:
        self.heads = total.shape[1]
        self.total = total.sum(dim=1).to(self.row.dtype)

    def result(self) -> Float[Tensor, "images keys"]:
        return self.total / self.heads


@dataclass
class ClampedMeanUpdate:
    """Collects r · (E_h[∇A ⊙ A])⁺, the heads' mean taken before the clamp: one whole matrix per image."""

    row: Float[Tensor, "images queries"]
    centred: bool
    total: Float[Tensor, "images queries keys"] = field(init=False)
    heads: int = field(init=False)
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        self.heads = heads
        self.total = self.row.new_zeros(images, self.row.shape[1], keys)

    def add(self, block: Block, attention: Matrix, gradient: Matrix) -> None:
        if self.centred:
            gradient = centre(attention, gradient)
        self.total[block.images, block.rows] += (gradient * attention).sum(dim=1).to(self.total.dtype)

    def result(self) -> Float[Tensor, "images keys"]:
        return (self.row[:, None] @ (self.total / self.heads).clamp(min=0))[:, 0]


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
