"""What one layer adds to a relevance row: the formulas f(∇A) ⊙ A, and the head norms of GMAR.

All work on blocks of query rows, so that no layer's whole matrix is ever needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from .calls import Block, compute_dtype

__all__ = [
    "ELEMENTWISE",
    "ClampedMeanUpdate",
    "Collector",
    "ElementwiseRule",
    "HeadNorms",
    "QuerySum",
    "RowUpdate",
    "SummingCollector",
    "absolute",
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
