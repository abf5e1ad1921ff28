"""Rows through the product of recorded attention maps, without forming any of them whole."""

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import blocks, compute_dtype, probabilities, without_autocast
from .record import RecordedLayer
from .tiled import row_of_attention, tiles_fit

__all__ = ["each_head_times_attention", "row_times_attention", "rows_times_attention"]


def row_times_attention(
    row: Float[Tensor, "images queries"],
    layer: RecordedLayer,
    head_weights: Float[Tensor, "images heads"] | None = None,
) -> Float[Tensor, "images keys"]:
    """r · Σ_h w_h A_h of one recorded layer; `head_weights` sum to one and default to the mean over heads."""
    return rows_times_attention(row[:, None], layer, head_weights)[:, 0]


@without_autocast
def rows_times_attention(
    rows: Float[Tensor, "images rows queries"],
    layer: RecordedLayer,
    head_weights: Float[Tensor, "images heads"] | None = None,
) -> Float[Tensor, "images rows keys"]:
    """R · Σ_h w_h A_h of one recorded layer, for several rows of each image."""
    weights = head_weights
    if weights is None:
        weights = rows.new_full((layer.images, layer.heads), 1 / layer.heads)
    if layer.call is None:
        attention = layer.probabilities()
        dtype = compute_dtype(attention.dtype)
        return rows.to(dtype) @ torch.einsum("bh,bhqk->bqk", weights.to(dtype), attention.to(dtype))
    if rows.shape[1] == 1 and tiles_fit(layer.call):
        by_head = row_of_attention(layer.call, rows[:, 0])
        if by_head is not None:
            return torch.einsum("bh,bhk->bk", weights.to(by_head), by_head).to(rows.dtype)[:, None]
    total = rows.new_zeros(*rows.shape[:2], layer.keys)
    for block in blocks(layer.call):
        attention = probabilities(layer.call, block)
        fused = torch.einsum("bh,bhqk->bqk", weights[block.images, block.heads].to(attention.dtype), attention)
        total[block.images] += (rows[block.images, :, block.rows].to(attention.dtype) @ fused).to(total.dtype)
    return total


def each_head_times_attention(
    rows: Float[Tensor, "images heads queries"], layer: RecordedLayer
) -> Float[Tensor, "images heads keys"]:
    """r_h · A_h for every head h by itself."""
    attention = layer.probabilities()
    return torch.einsum("bhq,bhqk->bhk", rows.to(attention.dtype), attention)
