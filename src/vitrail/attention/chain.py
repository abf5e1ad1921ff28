"""A row through the product of recorded attention maps, without forming any of them whole."""

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import blocks, compute_dtype, probabilities, without_autocast
from .record import RecordedLayer

__all__ = ["row_times_attention"]


@without_autocast
def row_times_attention(
    row: Float[Tensor, "images queries"],
    layer: RecordedLayer,
    head_weights: Float[Tensor, "images heads"] | None = None,
) -> Float[Tensor, "images keys"]:
    """r · Σ_h w_h A_h of one recorded layer; `head_weights` sum to one and default to the mean over heads."""
    weights = head_weights
    if weights is None:
        weights = row.new_full((layer.images, layer.heads), 1 / layer.heads)
    if layer.call is None:
        attention = layer.probabilities()
        dtype = compute_dtype(attention.dtype)
        return torch.einsum("bq,bh,bhqk->bk", row.to(dtype), weights.to(dtype), attention.to(dtype))
    total = row.new_zeros(layer.images, layer.keys)
    for block in blocks(layer.call):
        attention = probabilities(layer.call, block)
        part = row[block.images, None, None, block.rows] * weights[block.images, block.heads, None, None]
        total[block.images] += (part.to(attention.dtype) @ attention).sum(dim=(1, 2)).to(total.dtype)
    return total
