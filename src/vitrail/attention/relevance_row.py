"""Relevance as one row that flows backward: at layer l, r ← r + (1/H) Σ_h r · (f(∇A_h) ⊙ A_h).

Autograd reaches the layers from last to first, which is the order of the product Ā^L … Ā^1 read at one row. So the
rule stands in the backward pass of attention, and each layer is forgotten as soon as it is passed. That pass walks
blocks of query rows (`attention_backward`) and shows each block of A and ∇A to a collector of the formula f(∇A) ⊙ A, so
that no layer's whole matrix is ever needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall, Block, blocks, compute_dtype, probabilities, without_autocast
from .gradient_modes import QUARTER, TEMPERATURE, nonzero_rows

__all__ = [
    "ELEMENTWISE",
    "ClampedMeanUpdate",
    "Collector",
    "ElementwiseRule",
    "Gradients",
    "QuerySum",
    "RelevanceRow",
    "RowUpdate",
    "SummingCollector",
    "absolute",
    "add_update",
    "attention_backward",
    "centre",
    "collect_whole",
    "complete",
    "constant_attention_backward",
    "fused_row",
    "positive",
    "softened_backward",
    "softmax_backward",
]

Matrix: TypeAlias = Float[Tensor, "images heads rows keys"]
ElementwiseRule: TypeAlias = Callable[[Matrix, Matrix], Matrix]


def complete(attention: Matrix, gradient: Matrix) -> Matrix:
    """Returns ∇A ⊙ A, signed (Cui, Fan, Chen, Eq. 5)."""
    return gradient * attention


def positive(attention: Matrix, gradient: Matrix) -> Matrix:
    """Returns (∇A)⁺ ⊙ A (Chefer, Gur, Wolf 2021, GAE; Eq. 4 of Cui, Fan, Chen). A ≥ 0, so this is (∇A ⊙ A)⁺."""
    return gradient.clamp(min=0).mul_(attention)


def absolute(attention: Matrix, gradient: Matrix) -> Matrix:
    """Returns |∇A| ⊙ A (Cui, Fan, Chen, Eq. 6)."""
    return gradient.abs().mul_(attention)


def centre(attention: Matrix, gradient: Matrix) -> Matrix:
    """Returns ∇A minus its mean under A in every row: the part of the gradient that a softmax can follow."""
    return gradient - (attention * gradient).sum(dim=-1, keepdim=True)


ELEMENTWISE: dict[str, ElementwiseRule] = {"complete": complete, "positive": positive, "absolute": absolute}


@runtime_checkable
class Collector(Protocol):
    """Is shown every block of A and ∇A of one layer, and keeps what it needs of them."""

    @property
    def every_row(self) -> bool:
        """Returns whether query rows with zero ∇A must be added too; otherwise they may be left out."""
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
        """Returns the sum that suffices for it; None where its function has no name."""
        ...

    def take_sum(self, total: Float[Tensor, "images heads keys"]) -> None:
        """Takes the sum, in place of `begin` and all `add`."""
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
        """Returns whether the rule is the user's own, which may use a ∇A that is zero."""
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
    """Returns r + update for self-attention; the update alone where a few queries pool the tokens (no residual joins
    them).
    """
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
        """Starts a backward pass from the readout's row."""
        self._identity, self._added = readout, None

    def result(self) -> Float[Tensor, "images tokens"]:
        """Returns the sum of all layers' additions to the readout's row: the row of Ā^L … Ā^1 − I."""
        if self._added is None:
            raise RuntimeError("no backward pass has reached an attention since begin()")
        return self._added

    def current_row(self, layer: int) -> Float[Tensor, "images tokens"]:
        """Returns the whole row as it stands, the identity's part included; `layer` is where the pass has come to."""
        del layer
        if self._identity is None:
            raise RuntimeError("begin() sets the readout before a backward pass")
        return self._identity if self._added is None else self._identity + self._added

    def collector(self, layer: int) -> RowUpdate | ClampedMeanUpdate:
        if self.clamp_mean:
            return ClampedMeanUpdate(self.current_row(layer), self.centred)
        return RowUpdate(self.rule, self.current_row(layer), self.centred)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, RowUpdate | ClampedMeanUpdate)
        self.take_update(layer, collector.result())

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        if update.shape != self.current_row(layer).shape:
            # A few queries pool the tokens: no residual leads from them to the tokens, so the identity ends here.
            self._identity, self._added = torch.zeros_like(update), update
        else:
            self._added = update if self._added is None else self._added + update


class Gradients(NamedTuple):
    """What flows on to the query, key and value of one call; None where nothing is wanted."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None


def softmax_backward(
    attention: Float[Tensor, "*shape keys"], gradient: Float[Tensor, "*shape keys"]
) -> Float[Tensor, "*shape keys"]:
    """Returns the gradient of the scores before the softmax: A ⊙ (∇A − rowsum(A ⊙ ∇A))."""
    return torch.ops.aten._softmax_backward_data(gradient, attention, -1, attention.dtype)


def softened_backward(
    attention: Float[Tensor, "*shape keys"], gradient: Float[Tensor, "*shape keys"]
) -> Float[Tensor, "*shape keys"]:
    """Returns what `gim` takes for the gradient of the scores: that of a softmax of twice the temperature, quartered.

    The softmax of s / T is that of s to the power 1/T, each row divided by its sum.
    """
    softened = attention.pow(1 / TEMPERATURE)
    softened = softened / softened.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(softened.dtype).tiny)
    return QUARTER * softmax_backward(softened, gradient)


def collect_whole(
    collector: Collector,
    attention: Float[Tensor, "images heads queries keys"],
    gradient: Float[Tensor, "images heads queries keys"],
) -> None:
    """Gives a collector the whole A and ∇A of attention that a model writes out, as one block."""
    images, heads, queries, keys = attention.shape
    collector.begin(images, heads, keys, attention)
    collector.add(Block(slice(0, images), slice(0, heads), slice(0, queries)), attention, gradient)


@without_autocast
def attention_backward(
    call: AttentionCall,
    grad_output: Float[Tensor, "images heads queries value_width"],
    collector: Collector | None = None,
    *,
    through_scores: bool,
    through_value: bool,
    softened: bool = False,
) -> Gradients:
    """Differentiates attention, holding one block of A and ∇A = dO Vᵀ at a time.

    Every row of A is formed whole within its block, so the softmax needs no statistics from the forward pass, and any
    function of A and ∇A can be collected on the way at no further matrix product. Rows that no gradient reaches are not
    walked, unless the collector asks for every row. Sums are in float32 (float64 for float64); the gradients come back
    in the dtype of what they belong to. `softened` are the gradients of `gim`; ∇A itself stays as it is.
    """
    dtype = compute_dtype(call.query.dtype)
    if collector is not None:
        collector.begin(call.images, call.heads, call.keys, call.query)
    rows_asked = slice(0, call.queries) if collector is not None and collector.every_row else nonzero_rows(grad_output)
    all_asked = rows_asked == slice(0, call.queries)
    make = call.query.new_empty if all_asked else call.query.new_zeros
    d_query = make(call.query.shape, dtype=dtype) if through_scores else None
    d_key = call.key.new_empty(call.key.shape, dtype=dtype) if through_scores else None
    d_value = call.value.new_empty(call.value.shape, dtype=dtype) if through_value else None
    if collector is None and not (through_scores or through_value):
        return Gradients(None, None, None)
    for block in blocks(call, rows_asked):
        starts = block.rows.start == rows_asked.start
        some = block.images, block.heads
        rows = *some, block.rows
        upstream = grad_output[rows].to(dtype)
        attention = probabilities(call, block)
        if d_value is not None:
            _multiply(
                attention.transpose(-1, -2), upstream, d_value[some], scale=0.5 if softened else 1.0, add=not starts
            )
        if collector is None and d_query is None:
            continue
        gradient = upstream @ call.value[some].to(dtype).transpose(-1, -2)
        if d_query is not None and d_key is not None:
            d_scores = (softened_backward if softened else softmax_backward)(attention, gradient)
            scale, query = call.scale, call.query[rows].to(dtype)
            _multiply(d_scores, call.key[some].to(dtype), d_query[rows], scale=scale)
            _multiply(d_scores.transpose(-1, -2), query, d_key[some], scale=scale, add=not starts)
        if collector is not None:
            collector.add(block, attention, gradient)
    return Gradients(
        None if d_query is None else d_query.to(call.query.dtype),
        None if d_key is None else d_key.to(call.key.dtype),
        None if d_value is None else d_value.to(call.value.dtype),
    )


def _multiply(left: Tensor, right: Tensor, into: Tensor, *, scale: float = 1.0, add: bool = False) -> None:
    """into ← scale · left @ right, or that added to it, with no second product to be copied over."""
    # A block's images and heads follow each other in memory (`blocks`), so this is a view.
    product = into.view(-1, *into.shape[-2:])
    product.baddbmm_(left.flatten(0, 1), right.flatten(0, 1), beta=1.0 if add else 0.0, alpha=scale)


@without_autocast
def constant_attention_backward(
    call: AttentionCall,
    grad_output: Float[Tensor, "images heads queries value_width"],
    row: Float[Tensor, "images queries"],
) -> tuple[Float[Tensor, "images heads keys value_width"], Float[Tensor, "images keys"]]:
    """Returns, for constant A, the value's gradient Aᵀ dO, and (1/H) Σ_h r · (∇A_h ⊙ A_h).

    Aᵀ (r ⊙ dO) gives the row (`fused_row`), so that no ∇A is formed.
    """
    dtype = compute_dtype(call.query.dtype)
    rows_asked = nonzero_rows(grad_output)
    d_value = call.value.new_empty(*call.key.shape[:-1], grad_output.shape[-1], dtype=dtype)
    d_row = torch.empty_like(d_value)
    for block in blocks(call, rows_asked):
        some, add = (block.images, block.heads), block.rows.start != rows_asked.start
        attention, upstream = probabilities(call, block).transpose(-1, -2), grad_output[*some, block.rows].to(dtype)
        _multiply(attention, upstream, d_value[some], add=add)
        _multiply(attention, upstream * row[block.images, None, block.rows, None], d_row[some], add=add)
    return d_value.to(call.value.dtype), fused_row(call.value, d_row)


def fused_row(
    value: Float[Tensor, "images heads keys value_width"],
    d_value: Float[Tensor, "images heads keys value_width"],
) -> Float[Tensor, "images keys"]:
    """Returns (1/H) Σ_h r · (∇A_h ⊙ A_h), from A_hᵀ (r ⊙ dO_h): what a backward gives for V when it is fed r ⊙ dO.

    Because ∇A_h = dO_h V_hᵀ, entry j is ⟨V_h[j], (A_hᵀ (r ⊙ dO_h))[j]⟩: no matrix over queries and keys is formed.
    """
    dtype = compute_dtype(value.dtype)
    return (value.to(dtype) * d_value.to(dtype)).sum(dim=-1).mean(dim=1)
