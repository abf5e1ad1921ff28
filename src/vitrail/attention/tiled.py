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
from .logsumexp import kept_logsumexp
from .weighting import QuerySum

__all__ = ["row_of_attention", "sum_over_queries", "tiles_fit"]

logger = logging.getLogger(__name__)

# What a tile of A, one of ∇A and their factors leave room for in registers and shared memory.
WIDEST = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 128}

# Shapes for which a kernel could not be built or started here: blocks serve them.
_FAILED: set[tuple[torch.dtype, int, int]] = set()


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
    """r · A_h for every head of a call that fits; None where the kernel cannot be built here."""
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
