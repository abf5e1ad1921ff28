"""ln Σ_j exp(scores_ij), as the fused forward passes keep it in autograd's graph for their own backward.

What a library keeps is private to it. So the first that a process meets of each kind is held against the scores of a
few queries, written out, before any is believed.
"""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall, compute_dtype, without_autocast

__all__ = ["kept_logsumexp"]

logger = logging.getLogger(__name__)

# Nodes of autograd's graph that keep it, and under which name.
_KEEPERS = {
    "ScaledDotProductFlashAttentionBackward0": "_saved_logsumexp",
    "ScaledDotProductCudnnAttentionBackward0": "_saved_logsumexp",
    "ScaledDotProductEfficientAttentionBackward0": "_saved_log_sumexp",
    "ScaledDotProductFlashAttentionForCpuBackward0": "_saved_logsumexp",
}

# Whether what a kind of node keeps was found to be the logsumexp that is meant.
_AS_MEANT: dict[str, bool] = {}

# Queries whose scores are written out to find that out.
WRITTEN_OUT = 16


def kept_logsumexp(
    call: AttentionCall, output: Float[Tensor, "images heads queries value_width"]
) -> Float[Tensor, "images heads queries"] | None:
    """What the fused forward pass of `output`, a call without a mask, kept; None if it kept nothing of the kind."""
    kept = _kept(call, output)
    if kept is None or output.grad_fn is None:
        return None
    name = output.grad_fn.name()
    if name not in _AS_MEANT:
        _AS_MEANT[name] = _as_meant(call, kept)
        if not _AS_MEANT[name]:
            logger.warning("%s keeps something else than the scores' logsumexp: it is not used", name)
    return kept if _AS_MEANT[name] else None


def _kept(call: AttentionCall, output: Tensor) -> Float[Tensor, "images heads queries"] | None:
    node = output.grad_fn
    name = None if node is None else _KEEPERS.get(node.name())
    kept = None if name is None else getattr(node, name, None)
    if kept is None or kept.dtype != compute_dtype(call.query.dtype):
        return None
    # cuDNN keeps a last dimension of one; the memory-efficient kernel rounds the queries up to a multiple of 32.
    kept = kept.squeeze(-1) if kept.dim() == 4 else kept
    if kept.dim() != 3 or kept.shape[:2] != call.query.shape[:2] or kept.shape[2] < call.queries:
        return None
    return kept[..., : call.queries]


@without_autocast
def _as_meant(call: AttentionCall, kept: Float[Tensor, "images heads queries"]) -> bool:
    dtype = compute_dtype(call.query.dtype)
    query, key = (tensor.detach().to(dtype) for tensor in (call.query[..., :WRITTEN_OUT, :], call.key))
    own = torch.logsumexp(query @ key.transpose(-1, -2) * call.scale, dim=-1)
    return torch.allclose(kept[..., :WRITTEN_OUT], own, rtol=1e-3, atol=1e-2, equal_nan=True)
