"""The backward pass of attention, walked in blocks of query rows, each block of A and ∇A shown to a collector."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall, Block, blocks, compute_dtype, probabilities, without_autocast
from .nonzero_rows import nonzero_rows
from .relevance_row import Collector

__all__ = [
    "Gradients",
    "attention_backward",
    "collect_whole",
    "constant_attention_backward",
    "fused_row",
    "softmax_backward",
]


class Gradients(NamedTuple):
    """What flows on to the query, key and value of one call; None where nothing is wanted."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None


def softmax_backward(
    attention: Float[Tensor, "*shape keys"], gradient: Float[Tensor, "*shape keys"]
) -> Float[Tensor, "*shape keys"]:
    """The gradient of the scores before the softmax: A ⊙ (∇A − rowsum(A ⊙ ∇A))."""
    return torch.ops.aten._softmax_backward_data(gradient, attention, -1, attention.dtype)


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
) -> Gradients:
    """Differentiate attention, holding one block of A and ∇A = dO Vᵀ at a time.

    Every row of A is formed whole within its block, so the softmax needs no statistics from the forward pass, and any
    function of A and ∇A can be collected on the way at no further matrix product. Rows that no gradient reaches are not
    walked, unless the collector asks for every row. Sums are in float32 (float64 for float64); the gradients come back
    in the dtype of what they belong to.
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
            _multiply(attention.transpose(-1, -2), upstream, d_value[some], add=not starts)
        if collector is None and d_query is None:
            continue
        gradient = upstream @ call.value[some].to(dtype).transpose(-1, -2)
        if d_query is not None and d_key is not None:
            d_scores = softmax_backward(attention, gradient)
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
    """into ← scale · left @ right, or that added to it, with no product beside it to be copied over."""
    # A block's images and heads follow each other in memory (`blocks`), so this is a view.
    product = into.view(-1, *into.shape[-2:])
    product.baddbmm_(left.flatten(0, 1), right.flatten(0, 1), beta=1.0 if add else 0.0, alpha=scale)


@without_autocast
def constant_attention_backward(
    call: AttentionCall,
    grad_output: Float[Tensor, "images heads queries value_width"],
    row: Float[Tensor, "images queries"],
) -> tuple[Float[Tensor, "images heads keys value_width"], Float[Tensor, "images keys"]]:
    """Where nothing flows through A: Aᵀ dO, which flows on to the value, and (1/H) Σ_h r · (∇A_h ⊙ A_h).

    One product Aᵀ [dO, r ⊙ dO] gives both (`fused_row`), so that no ∇A is formed.
    """
    dtype, width = compute_dtype(call.query.dtype), grad_output.shape[-1]
    rows_asked = nonzero_rows(grad_output)
    both = call.value.new_empty(call.images, call.heads, call.keys, 2 * width, dtype=dtype)
    for block in blocks(call, rows_asked):
        flow = grad_output[block.images, block.heads, block.rows]
        upstream = flow.new_empty(*flow.shape[:-1], 2 * width, dtype=dtype)
        upstream[..., :width] = flow
        torch.mul(upstream[..., :width], row[block.images, None, block.rows, None], out=upstream[..., width:])
        attention, into = probabilities(call, block).transpose(-1, -2), both[block.images, block.heads]
        _multiply(attention, upstream, into, add=block.rows.start != rows_asked.start)
    d_value, d_row = both.split(width, dim=-1)
    return d_value.to(call.value.dtype), fused_row(call.value, d_row)


def fused_row(
    value: Float[Tensor, "images heads keys value_width"],
    d_value: Float[Tensor, "images heads keys value_width"],
) -> Float[Tensor, "images keys"]:
    """(1/H) Σ_h r · (∇A_h ⊙ A_h), from A_hᵀ (r ⊙ dO_h): what a backward gives for V when it is fed r ⊙ dO.

    Because ∇A_h = dO_h V_hᵀ, entry j is ⟨V_h[j], (A_hᵀ (r ⊙ dO_h))[j]⟩: no matrix over queries and keys is formed.
    """
    dtype = compute_dtype(value.dtype)
    return (value.to(dtype) * d_value.to(dtype)).sum(dim=-1).mean(dim=1)
