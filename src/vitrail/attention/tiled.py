"""Which calls of attention a Triton kernel can sum over the queries, and what it is given of the forward pass.

Beside the fused backward, which gives the gradients of q, k and v, the kernel forms A and ∇A a second time, in
registers: two products a tile beside the fused backward's five. To form the gradients in the same sweep would save
nothing: written so that no two programs add to one number, dK and dV need four products and dQ three, seven as well,
and the library's kernels are the faster ones.

The kernel gives the same bytes every time. The fused backward does where PyTorch is asked for it, by
`torch.use_deterministic_algorithms(True)`; else parts of dQ may be added up in any order.
"""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall, without_autocast
from .weighting import QuerySum

__all__ = ["kept_logsumexp", "row_of_attention", "sum_over_queries", "tiles_fit"]

logger = logging.getLogger(__name__)

# What a tile of A, one of ∇A and their factors leave room for in registers and shared memory.
WIDEST = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 128}

# Nodes of autograd's graph that keep ln Σ_j exp(scores_ij) of a fused forward pass, and under which name.
_KEEPERS = {
    "ScaledDotProductFlashAttentionBackward0": "_saved_logsumexp",
    "ScaledDotProductCudnnAttentionBackward0": "_saved_logsumexp",
    "ScaledDotProductEfficientAttentionBackward0": "_saved_log_sumexp",
    "ScaledDotProductFlashAttentionForCpuBackward0": "_saved_logsumexp",
}

# Shapes for which a kernel could not be built or started here: blocks serve them.
_FAILED: set[tuple[torch.dtype, int, int]] = set()

# Whether what a kind of node keeps was found to be the logsumexp that is meant.
_KEPT_AS_MEANT: dict[str, bool] = {}


def tiles_fit(call: AttentionCall, forced: bool = False) -> bool:
    """Whether the kernel serves this call: no mask, one precision, no head wider than `WIDEST`.

    By itself it is chosen on NVIDIA GPUs from Ampere on, where Triton is installed, in half precision: in float32 it
    would multiply without tensor cores, and PyTorch's products over blocks are the faster. `forced` takes it for
    float32 too, and on a CPU (under Triton's interpreter).
    """
    query, key, value = call.query, call.key, call.value
    if call.mask is not None or call.causal or not query.dtype == key.dtype == value.dtype:
        return False
    if max(query.shape[-1], value.shape[-1]) > WIDEST.get(query.dtype, 0) or 0 in (call.queries, call.keys):
        return False
    if forced:
        return _importable()
    half = query.dtype != torch.float32
    return half and query.is_cuda and _served(query.device) and _shape(call) not in _FAILED


@without_autocast
def sum_over_queries(
    call: AttentionCall,
    wanted: QuerySum,
    upstream: Float[Tensor, "images heads queries value_width"],
    output: Float[Tensor, "images heads queries value_width"],
    forced: bool = False,
) -> Float[Tensor, "images heads keys"] | None:
    """The sum that is wanted, of one call that fits; None where the kernel cannot be built here.

    `output` is the attention's own, in autograd's graph where that keeps the scores' logsumexp; else the kernel forms
    it in a sweep of its own, one product more. What other libraries keep is private to them, so the first that a
    process meets of each kind is held against that sweep.
    """
    from .triton_row import logsumexp_of_scores, sums_over_queries

    try:
        upstream = upstream.to(call.value.dtype)
        if wanted.row is None:
            return sums_over_queries(call, wanted.function, upstream)
        logsumexp = kept_logsumexp(call, output)
        if logsumexp is None or not _as_meant(output, logsumexp, call):
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
    """r · A_h for every head of a call that fits; None where the kernel cannot be built here."""
    from .triton_row import logsumexp_of_scores, sums_over_queries

    try:
        return sums_over_queries(call, "attention", row=row, logsumexp=logsumexp_of_scores(call))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _give_up(call, error)
        return None


def kept_logsumexp(
    call: AttentionCall, output: Float[Tensor, "images heads queries value_width"]
) -> Float[Tensor, "images heads queries"] | None:
    """ln Σ_j exp(scores_ij) as the fused forward pass of `output` kept it for its own backward; None if it did not."""
    node = output.grad_fn
    name = None if node is None else _KEEPERS.get(node.name())
    kept = None if name is None else getattr(node, name, None)
    if kept is None or kept.dtype != torch.float32:
        return None
    # cuDNN keeps a last dimension of one; the memory-efficient kernel rounds the queries up to a multiple of 32.
    kept = kept.squeeze(-1) if kept.dim() == 4 else kept
    if kept.dim() != 3 or kept.shape[:2] != call.query.shape[:2] or kept.shape[2] < call.queries:
        return None
    return kept[..., : call.queries]


def _as_meant(output: Tensor, kept: Tensor, call: AttentionCall) -> bool:
    from .triton_row import logsumexp_of_scores

    assert output.grad_fn is not None
    name = output.grad_fn.name()
    if name not in _KEPT_AS_MEANT:
        own = logsumexp_of_scores(call)
        _KEPT_AS_MEANT[name] = torch.allclose(kept, own, rtol=1e-3, atol=1e-2, equal_nan=True)
        if not _KEPT_AS_MEANT[name]:
            logger.warning("%s keeps something else than the scores' logsumexp: it is formed anew", name)
    return _KEPT_AS_MEANT[name]


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
