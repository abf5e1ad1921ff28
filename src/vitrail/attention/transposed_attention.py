"""Aᵀ X by the fused forward pass of attention, its queries and keys in each other's place: no N×N matrix, no backward.

With L_i = ln Σ_j exp(s_ij), as the model's own forward pass keeps it, A_ij = exp(s_ij − L_i). Attention in which key j
asks and query i answers, its scores lowered by L_i, has as normaliser the column sum Z_j = Σ_i A_ij, and so gives
(Aᵀ X)_j / Z_j; and ln Z_j is what that pass keeps. Two products and one sweep, where a backward has five.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall
from .logsumexp import kept_logsumexp

__all__ = ["attention_transposed", "swaps"]

# From here on the fused sweeps are the faster: below, all heads of an image fit the cache in one block.
FROM_KEYS = 512


def swaps(call: AttentionCall) -> bool:
    """Whether this way serves a call and is the faster: on a CPU, many keys, no mask, float32 or float64."""
    one_kind = call.query.dtype == call.key.dtype == call.value.dtype
    return (
        call.query.device.type == "cpu"
        and min(call.queries, call.keys) >= FROM_KEYS
        and call.mask is None
        and not call.causal
        and one_kind
        and call.query.dtype in (torch.float32, torch.float64)
        and call.query.shape[-1] == call.value.shape[-1]
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    )


def attention_transposed(
    call: AttentionCall,
    output: Float[Tensor, "images heads queries width"],
    rows: Float[Tensor, "images heads queries width"],
) -> Float[Tensor, "images heads keys width"] | None:
    """Aᵀ X for the rows X of every head; `output` is the attention's own, in autograd's graph.

    None where that graph does not keep the scores' logsumexp: another kernel has answered the call.
    """
    logsumexp = kept_logsumexp(call, output)
    if logsumexp is None:
        return None
    # The kernel keeps the heads beside each other in memory; as a bias it reads them twice as fast one after another.
    lowered = -logsumexp[:, :, None, :].contiguous()
    mean, of_columns = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        call.key, call.query, rows.contiguous(), 0.0, False, attn_mask=lowered, scale=call.scale
    )
    return mean.mul_(of_columns.exp()[..., None])
