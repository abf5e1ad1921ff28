"""Sums over the queries of functions of A and ∇A, as Triton kernels: no matrix over queries and keys leaves a tile.

Two products a tile, q kᵀ and dO vᵀ, give A and ∇A in registers; their function is summed over the queries there and
then. A program owns some keys of one head and walks all queries, so it alone writes its part of the sum: nothing is
added atomically, and the same inputs give the same bytes. Only `tiled.py` imports this module, where Triton is
available.

Under Triton's interpreter (TRITON_INTERPRET=1 before the import) the same kernels run on a CPU.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall

__all__ = ["Tiling", "logsumexp_of_scores", "sums_over_queries", "tiling"]

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
@no_type_check
def _tile(base, tokens, first, count, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr, WIDE: tl.constexpr):
    """`count` tokens from `first`, (count, PADDED) numbers; zero beyond the tokens and beyond the width."""
    token = first + tl.arange(0, count)
    channel = tl.arange(0, PADDED)
    inside = (token[:, None] < tokens) & (channel[None, :] < WIDTH)
    tile = tl.load(base + token[:, None] * stride + channel[None, :], mask=inside, other=0.0)
    if WIDE:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
@no_type_check
def _sum_over_queries(
    query, key, value, upstream, output, logsumexp, row, sums,
    heads, queries, keys, scale,
    query_image, query_head, query_token,
    key_image, key_head, key_token,
    value_image, value_head, value_token,
    upstream_image, upstream_head, upstream_token,
    output_image, output_head, output_token,
    logsumexp_image, logsumexp_head, logsumexp_token,
    row_image, row_token,
    FUNCTION: tl.constexpr, CENTRED: tl.constexpr,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_PADDED: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """sums[image, head, j] = Σ_i r_i f(A_ij, ∇A_ij) for KEYS keys j; `scale` is that of the scores, times log2(e)."""
    attends: tl.constexpr = FUNCTION != "norm1" and FUNCTION != "norm2"
    differentiates: tl.constexpr = FUNCTION != "attention"
    tiles = tl.cdiv(keys, KEYS)
    first_key = tl.program_id(0) % tiles * KEYS
    # 64 bits: images · heads · tokens · width exceed 32 in a large batch.
    image = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    if attends:
        query += image * query_image + head * query_head
        logsumexp += image * logsumexp_image + head * logsumexp_head
        row += image * row_image
        k = _tile(key + image * key_image + head * key_head, keys, first_key, KEYS, key_token, WIDTH, PADDED, WIDE)
    if differentiates:
        upstream += image * upstream_image + head * upstream_head
        output += image * output_image + head * output_head
        value += image * value_image + head * value_head
        v = _tile(value, keys, first_key, KEYS, value_token, VALUE_WIDTH, VALUE_PADDED, WIDE)
    total = tl.zeros([KEYS], dtype=tl.float32)
    for first in range(0, queries, QUERIES):
        # Keys lie along the rows of a tile, so that the sum over queries stays within a few threads.
        summand = tl.full([KEYS, QUERIES], 1.0, dtype=tl.float32)
        if differentiates:
            do = _tile(upstream, queries, first, QUERIES, upstream_token, VALUE_WIDTH, VALUE_PADDED, WIDE)
            gradient = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            if CENTRED:
                # Σ_j A_ij ∇A_ij = ⟨dO_i, O_i⟩: the mean of ∇A under A needs no pass over the keys.
                o = _tile(output, queries, first, QUERIES, output_token, VALUE_WIDTH, VALUE_PADDED, WIDE)
                gradient -= tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)[None, :]
            if FUNCTION == "positive":
                summand = tl.maximum(gradient, 0.0)
            elif FUNCTION == "absolute" or FUNCTION == "norm1":
                summand = tl.abs(gradient)
            elif FUNCTION == "norm2":
                summand = gradient * gradient
            else:
                summand = gradient
        if attends:
            q = _tile(query, queries, first, QUERIES, query_token, WIDTH, PADDED, WIDE)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            token = first + tl.arange(0, QUERIES)
            # Beyond the queries the logsumexp is infinite, so A is zero there.
            statistics = tl.load(logsumexp + token * logsumexp_token, mask=token < queries, other=float("inf"))
            r = tl.load(row + token * row_token, mask=token < queries, other=0.0)
            attention = tl.exp2(scores * scale - statistics[None, :] * LOG2_E)
            summand = summand * (attention * r[None, :])
        total += tl.sum(summand, axis=1)
    j = first_key + tl.arange(0, KEYS)
    tl.store(sums + (image * heads + head) * keys + j, total, mask=j < keys)


@triton.jit
@no_type_check
def _logsumexp(
    query, key, logsumexp,
    heads, queries, keys, scale,
    query_image, query_head, query_token,
    key_image, key_head, key_token,
    WIDTH: tl.constexpr, PADDED: tl.constexpr,
    KEYS: tl.constexpr, QUERIES: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """logsumexp[image, head, i] = ln Σ_j exp(scores_ij) for QUERIES queries i; `scale` as above."""
    tiles = tl.cdiv(queries, QUERIES)
    first_query = tl.program_id(0) % tiles * QUERIES
    image = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    query += image * query_image + head * query_head
    key += image * key_image + head * key_head
    q = _tile(query, queries, first_query, QUERIES, query_token, WIDTH, PADDED, WIDE)
    largest = tl.full([QUERIES], -float("inf"), dtype=tl.float32)
    total = tl.zeros([QUERIES], dtype=tl.float32)
    for first in range(0, keys, KEYS):
        k = _tile(key, keys, first, KEYS, key_token, WIDTH, PADDED, WIDE)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where((first + tl.arange(0, KEYS))[None, :] < keys, scores, -float("inf"))
        risen = tl.maximum(largest, tl.max(scores, axis=1))
        total = total * tl.exp2(largest - risen) + tl.sum(tl.exp2(scores - risen[:, None]), axis=1)
        largest = risen
    i = first_query + tl.arange(0, QUERIES)
    logsumexp += (image * heads + head) * queries
    tl.store(logsumexp + i, (largest + tl.log2(total)) / LOG2_E, mask=i < queries)


class Tiling(NamedTuple):
    """How a kernel is cut: keys and queries of a tile, warps of a program, and loads under way at a time."""

    keys: int
    queries: int
    warps: int
    stages: int


def tiling(width: int, dtype: torch.dtype) -> Tiling:
    """Returns a cut that keeps a tile of A and one of ∇A in registers, and two programs or more on a multiprocessor."""
    if dtype == torch.float32:
        return Tiling(64, 32, 8, 2)
    return Tiling(128, 64, 4, 3) if width <= 64 else Tiling(64, 64, 4, 2) if width <= 128 else Tiling(64, 32, 4, 2)


def sums_over_queries(
    call: AttentionCall,
    function: str,
    upstream: Float[Tensor, "images heads queries value_width"] | None = None,
    row: Float[Tensor, "images queries"] | None = None,
    logsumexp: Float[Tensor, "images heads queries"] | None = None,
    output: Float[Tensor, "images heads queries value_width"] | None = None,
    cut: Tiling | None = None,
) -> Float[Tensor, "images heads keys"]:
    """Returns Σ_i r_i f(A_hij, ∇A_hij) for every head h and key j, in float32, of a call without mask.

    `function` f is "complete" (A ∇A), "positive" (A ∇A⁺), "absolute" (A |∇A|) or "attention" (A), which take the `row`
    r and the `logsumexp` of the scores; or "norm1" (|∇A|) or "norm2" (∇A²), whose r is 1. All but "attention" take the
    `upstream` gradient dO. With the attention's `output` O, ∇A is first centred: less its mean under A.
    """
    nothing = call.query
    upstream = nothing if upstream is None else _adjacent(upstream)
    centred = output is not None
    output = nothing if output is None else _adjacent(output)
    row = nothing[:, 0, :, 0] if row is None else row.float()
    logsumexp = nothing[..., 0] if logsumexp is None else logsumexp
    query, key, value = (_adjacent(tensor) for tensor in (call.query, call.key, call.value))
    sums = torch.empty(call.images, call.heads, call.keys, device=query.device, dtype=torch.float32)
    width, value_width = query.shape[-1], value.shape[-1]
    cut = cut or tiling(max(width, value_width), query.dtype)
    with _on(query.device):
        _sum_over_queries[(call.images * call.heads * triton.cdiv(call.keys, cut.keys),)](
            query, key, value, upstream, output, logsumexp, row, sums,
            call.heads, call.queries, call.keys, call.scale * math.log2(math.e),
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *upstream.stride()[:3], *output.stride()[:3],
            *logsumexp.stride(), *row.stride(),
            FUNCTION=function, CENTRED=centred,
            WIDTH=width, PADDED=_padded(width), VALUE_WIDTH=value_width, VALUE_PADDED=_padded(value_width),
            KEYS=cut.keys, QUERIES=cut.queries, **_options(query, cut),
        )  # fmt: skip
    return sums


def logsumexp_of_scores(call: AttentionCall, cut: Tiling | None = None) -> Float[Tensor, "images heads queries"]:
    """Returns ln Σ_j exp(scale · q_i · k_j) in float32, where the forward pass has not kept it: one product a tile."""
    query, key = _adjacent(call.query), _adjacent(call.key)
    logsumexp = torch.empty(call.images, call.heads, call.queries, device=query.device, dtype=torch.float32)
    width = query.shape[-1]
    cut = cut or tiling(width, query.dtype)
    with _on(query.device):
        # The tile is turned: here a program owns queries, and walks the keys.
        _logsumexp[(call.images * call.heads * triton.cdiv(call.queries, cut.keys),)](
            query, key, logsumexp,
            call.heads, call.queries, call.keys, call.scale * math.log2(math.e),
            *query.stride()[:3], *key.stride()[:3],
            WIDTH=width, PADDED=_padded(width), KEYS=cut.queries, QUERIES=cut.keys, **_options(query, cut),
        )  # fmt: skip
    return logsumexp


def _options(query: Tensor, cut: Tiling) -> dict[str, object]:
    # float32 is multiplied as float32, not as TF32. The interpreter takes the bits of bfloat16 for whole numbers; the
    # same numbers as float32 give the same products.
    interpreted = not isinstance(_sum_over_queries, triton.JITFunction)
    return {
        "PRECISION": "ieee",
        "WIDE": interpreted and query.dtype == torch.bfloat16,
        "num_warps": cut.warps,
        "num_stages": cut.stages,
        "enable_fp_fusion": True,
    }


def _adjacent(tensor: Tensor) -> Tensor:
    """The kernels take any strides but the last, which must be one: a gradient may come expanded from a sum."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _padded(width: int) -> int:
    """The power of two, 16 or more, that a tile's product needs."""
    return max(16, 1 << (width - 1).bit_length())


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
