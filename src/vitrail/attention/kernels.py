"""Faster kernels for the sums that a backward pass through attention needs, and the calls that each of them serves.

`attention_transposed` gives Aᵀ X by the fused forward pass on a CPU, `sum_over_queries` sums over the queries by a
Triton kernel; both read the logsumexp that the fused forward pass keeps (`kept_logsumexp`).
"""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from .calls import AttentionCall, compute_dtype, without_autocast
from .relevance_row import QuerySum

__all__ = ["attention_transposed", "kept_logsumexp", "launches", "row_of_attention", "sum_over_queries"]

logger = logging.getLogger(__name__)

# ln Σ_j exp(scores_ij), as the fused forward passes keep it in autograd's graph for their own backward. It is private
# to PyTorch, so the first of each kind in a process is compared with the scores of a few queries, written out.

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
    """Returns the logsumexp kept by the fused forward pass of `output`, a call without a mask; None if it kept none."""
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
    scores = query @ key.transpose(-1, -2) * call.scale
    if call.causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    own = torch.logsumexp(scores, dim=-1)
    return torch.allclose(kept[..., :WRITTEN_OUT], own, rtol=1e-3, atol=1e-2, equal_nan=True)


# Aᵀ X by the fused forward pass of attention, its queries and keys in each other's place: no N×N matrix, no backward.
#
# With L_i = ln Σ_j exp(s_ij), as the model's own forward pass keeps it, A_ij = exp(s_ij − L_i). Attention in which key
# j asks and query i answers, its scores lowered by L_i, has as normaliser the column sum Z_j = Σ_i A_ij, and so gives
# (Aᵀ X)_j / Z_j; and ln Z_j is what that pass keeps. Two products and one sweep, where a backward has five.
#
# Causal attention, in which key j is looked at by the queries from j on, is causal again when both are counted from the
# end. PyTorch takes no bias then, so L_i goes in as one more channel of the queries, which the keys multiply by one.


def attention_transposed(
    call: AttentionCall,
    output: Float[Tensor, "images heads queries width"],
    rows: Float[Tensor, "images heads queries width"],
) -> Float[Tensor, "images heads keys width"] | None:
    """Returns Aᵀ X for the rows X of every head; `output` is the attention's own, in autograd's graph.

    None where that graph does not keep the scores' logsumexp: another kernel has answered the call.
    """
    logsumexp = kept_logsumexp(call, output)
    if logsumexp is None:
        return None
    if call.causal:
        one, lowered = torch.ones_like(call.key[..., :1]), -logsumexp[..., None] / call.scale
        query, key = torch.cat([call.query, lowered], dim=-1).flip(-2), torch.cat([call.key, one], dim=-1).flip(-2)
        mean, of_columns = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            key, query, pad(rows, (0, 1)).flip(-2), 0.0, True, scale=call.scale
        )
        return mean.mul_(of_columns.exp()[..., None])[..., :-1].flip(-2)
    # The kernel keeps the heads side by side in memory; as a bias it reads them twice as fast one after another.
    lowered = -logsumexp[:, :, None, :].contiguous()
    mean, of_columns = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        call.key, call.query, rows.contiguous(), 0.0, False, attn_mask=lowered, scale=call.scale
    )
    return mean.mul_(of_columns.exp()[..., None])


# Which calls of attention a Triton kernel can sum over the queries, and what it is given of the forward pass.
#
# Next to the fused backward, which gives the gradients of q, k and v, the kernel forms A and ∇A a second time, in
# registers: two products a tile compared with the fused backward's five. To form the gradients in the same sweep would
# save nothing: written so that no two programs add to one number, dK and dV need four products and dQ three, seven as
# well, and the library's kernels are the faster ones.
#
# The kernel gives the same bytes every time. The fused backward does where PyTorch is asked for it, by
# `torch.use_deterministic_algorithms(True)`; else parts of dQ may be added up in any order.


logger = logging.getLogger(__name__)

# Shapes for which a kernel could not be built or started here: blocks serve them.
_FAILED: set[tuple[torch.dtype, int, int]] = set()


def launches(call: AttentionCall, forced: bool) -> bool:
    """Returns whether the kernel can be tried here: by itself on NVIDIA GPUs from Ampere on, `forced` wherever Triton
    is.
    """
    return _importable() if forced else _served(call.query.device) and _shape(call) not in _FAILED


@without_autocast
def sum_over_queries(
    call: AttentionCall,
    wanted: QuerySum,
    upstream: Float[Tensor, "images heads queries value_width"],
    output: Float[Tensor, "images heads queries value_width"],
    forced: bool = False,
) -> Float[Tensor, "images heads keys"] | None:
    """Returns the sum that is wanted, of one call that fits; None where the kernel cannot be built here.

    `output` is the attention's own, in autograd's graph where that keeps the scores' logsumexp; else the kernel forms
    it in a sweep of its own, one product more.
    """
    from .triton_row import logsumexp_of_scores, sums_over_queries

    try:
        upstream = upstream.to(call.value.dtype)
        if wanted.row is None:
            return sums_over_queries(call, wanted.function, upstream)
        logsumexp = kept_logsumexp(call, output)
        if logsumexp is None or logsumexp.dtype != torch.float32:
            logsumexp = logsumexp_of_scores(call)
        centre = output.detach() if wanted.centred else None
        return sums_over_queries(call, wanted.function, upstream, wanted.row, logsumexp, centre)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if forced:
            raise
        _give_up(call, error)
        return None


@without_autocast
def row_of_attention(
    call: AttentionCall, row: Float[Tensor, "images queries"]
) -> Float[Tensor, "images heads keys"] | None:
    """Returns r · A_h for every head of a call that fits; None where the kernel cannot be built here."""
    from .triton_row import logsumexp_of_scores, sums_over_queries

    try:
        return sums_over_queries(call, "attention", row=row, logsumexp=logsumexp_of_scores(call))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _give_up(call, error)
        return None


@cache
def _importable() -> bool:
    return find_spec("triton") is not None


@cache
def _served(device: torch.device) -> bool:
    return _importable() and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _shape(call: AttentionCall) -> tuple[torch.dtype, int, int]:
    return call.query.dtype, call.query.shape[-1], call.value.shape[-1]


def _give_up(call: AttentionCall, error: Exception) -> None:
    """Triton compiles on the user's machine, which takes a C compiler and shared memory enough: not all have both."""
    if _shape(call) not in _FAILED:
        logger.warning("attention goes on without its Triton kernel for %s: %s", _shape(call), error)
    _FAILED.add(_shape(call))
