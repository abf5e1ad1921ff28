"""Which row of the product is read: by a name that the user gives, or as the model's head reads it."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import LayoutError

__all__ = ["Readout", "readout_weights", "worked_out_readout"]

Readout: TypeAlias = str | int | tuple[int, int] | Sequence[float | int] | Tensor


def readout_weights(
    readout: Readout,
    queries: int,
    prefix: int,
    grid: tuple[int, int],
    pools: int = 0,
    order: Int[Tensor, " patches"] | None = None,
) -> Float[Tensor, " queries"]:
    """Weights over the queries of the last attention for a readout named by the user.

    "class" is token 0, "mean" the patches, "all" every token; an integer is a token, a pair (row, column) a patch; a
    sequence gives the weights themselves. `order` is that of the layout.

    Raises:
        LayoutError: when the model has no such token.
    """
    rows, cols = grid
    weights = torch.zeros(queries)
    patch = _as_patch(readout)
    if isinstance(readout, Tensor) or (
        isinstance(readout, Sequence) and not isinstance(readout, str) and patch is None
    ):
        weights = torch.as_tensor(readout, dtype=torch.float64)
        if weights.shape != (queries,):
            raise LayoutError(
                f"readout has {tuple(weights.shape)} weights, but the last attention has {queries} queries"
            )
        return weights
    if pools and readout != "all":
        raise LayoutError(
            f"readout={readout!r} names a token, but this model's head pools its tokens by attention with {queries} "
            'query: leave readout out, or give "all"'
        )
    if readout == "class":
        if queries == rows * cols:
            raise LayoutError('readout="class", but this model has no token beside its patches: use "mean"')
        weights[0 if prefix else rows * cols] = 1
    elif readout == "mean":
        weights[prefix : prefix + rows * cols] = 1 / (rows * cols)
    elif readout == "all":
        weights[:] = 1 / queries
    elif patch is not None:
        row, col = patch
        if not (0 <= row < rows and 0 <= col < cols):
            raise LayoutError(f"readout={readout} is no patch of the {rows}×{cols} grid (counted from 0)")
        cell = row * cols + col
        weights[prefix + (cell if order is None else int(order[cell]))] = 1
    elif isinstance(readout, int):
        if not -queries <= readout < queries:
            raise LayoutError(f"readout={readout} is no token: the last attention has {queries} queries")
        weights[readout] = 1
    else:
        raise LayoutError(
            f'readout={readout!r} is none of "class", "mean", "all", a token, a patch (row, column), weights'
        )
    return weights


def _as_patch(readout: Readout) -> tuple[int, int] | None:
    """A pair of whole numbers is a patch; any other sequence holds weights."""
    if isinstance(readout, tuple) and len(readout) == 2:
        row, col = readout
        if isinstance(row, int) and isinstance(col, int):
            return row, col
    return None


def worked_out_readout(
    reads: Float[Tensor, " queries"],
    prefix: int,
    patches: int,
    pools: int,
    again: Callable[[], Float[Tensor, " queries"]] | None = None,
) -> tuple[Float[Tensor, " queries"], str]:
    """Weights over the queries of the last attention, from the gradient that reaches each.

    Only which tokens are read is taken from the gradient, not how strongly: a class token counts as itself, pooled
    patches as their mean. A head that joins the class token with the patches' mean (DINOv2) gives each half.
    """
    seen = reads > reads.max() * 1e-9
    weights = seen.to(torch.float64)
    if pools:
        return weights / weights.sum(), "attention pooling"
    is_patch = torch.zeros_like(seen)
    is_patch[prefix : prefix + patches] = True
    others = int((seen & ~is_patch).sum())
    if not bool((seen & is_patch).any()):
        return weights / weights.sum(), "class token" if others == 1 else f"mean of {others} tokens beside the patches"
    few = seen & is_patch
    if again is not None and not bool(few[is_patch].all()):
        other = again()
        if bool(((other > other.max() * 1e-9) & is_patch == few).all()):
            # The same few patches of any image: one cell of a dense head, or what its interpolation joins.
            weights = ((reads / reads.sum() + other / other.sum()) * seen).double()
            return weights / weights.sum(), f"{int(few.sum())} of the {patches} patches" + (
                f" and {others} token(s) beside them" if others else ""
            )
    # A maximum over tokens shows only where the maxima lie; the head reads all patches nevertheless.
    weights[is_patch] = 1
    if others == 0:
        return weights / weights.sum(), "mean of the patches"
    # A token read by itself gets a gradient as large as all patches of a mean together, about √patches … patches times
    # one patch's; as one of many pooled alike it gets about the same as each of them.
    typical = reads[is_patch].median()
    if bool((reads[seen & ~is_patch] > typical * patches**0.5).all()):
        weights[~is_patch] /= others
        weights[is_patch] /= patches
        return weights / 2, "class token and mean of the patches"
    return weights / weights.sum(), "mean of all tokens"
