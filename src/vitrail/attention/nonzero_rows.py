"""What the backward pass skips: rows and columns whose gradient is exactly zero. The forward pass never changes.

Where a gradient is exactly zero, so is all that flows on from it through finite numbers: `linear` multiplies only the
rows and columns that it reaches. Behind the last attention of a model read at [CLS] that is one row of hundreds; where
attention is held constant, the values alone, a third of the columns of a layer that gives queries, keys and values.
What is skipped is found from the gradient itself, never foretold. Rows are counted along the last dimension but one; a
model that puts images there gains nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

__all__ = ["linear", "nonzero_columns", "nonzero_rows"]


def nonzero_rows(gradient: Float[Tensor, "*batch rows width"]) -> slice:
    """Returns the rows from the first to the last whose gradient is not zero, if they are at most half; else all of
    them.

    Away from the CPU it is always all: to look would be to wait for the device. NaN and infinity are no zeros.

    Example:
        >>> gradient = torch.zeros(2, 197, 64)
        >>> gradient[1, 0, 5] = 1.0
        >>> nonzero_rows(gradient), nonzero_rows(gradient + 1)
        (slice(0, 1, None), slice(0, 197, None))
    """
    rows = gradient.shape[-2]
    everything = slice(0, rows)
    # One row in the middle tells of most gradients that they are everywhere, at no cost.
    looked_at = gradient.device.type == "cpu" and rows > 1 and gradient.numel() > 0
    if not looked_at or gradient[..., rows // 2, :].any():
        return everything
    reached = gradient.ne(0).any(dim=-1).reshape(-1, rows).any(dim=0).nonzero()
    if not len(reached):
        return slice(0, 1)  # of zeros
    first, last = int(reached[0]), int(reached[-1])
    return slice(first, last + 1) if 2 * (last + 1 - first) <= rows else everything


def nonzero_columns(gradient: Float[Tensor, "*batch rows width"]) -> slice:
    """Returns the columns from the first to the last whose gradient is not zero, if they are at most half; else all of
    them.

    Away from the CPU it is always all, as in `nonzero_rows`.

    Example:
        >>> gradient = torch.zeros(2, 197, 12)
        >>> gradient[..., 8:] = 1.0
        >>> nonzero_columns(gradient), nonzero_columns(gradient + 1)
        (slice(8, 12, None), slice(0, 12, None))
    """
    everything = slice(0, gradient.shape[-1])
    if gradient.device.type != "cpu" or gradient.numel() == 0:
        return everything
    # One row says where to look, so that most gradients cost no more than that.
    rows = gradient.shape[-2]
    reached = gradient[..., rows // 2, :].reshape(-1, gradient.shape[-1])[0].nonzero()
    if not len(reached):
        return everything
    first, last = int(reached[0]), int(reached[-1])
    if 2 * (last + 1 - first) > everything.stop:
        return everything
    outside = [part for part in (gradient[..., :first], gradient[..., last + 1 :]) if part.numel()]
    return slice(first, last + 1) if all(part.abs().amax() == 0 for part in outside) else everything


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `torch.nn.functional.linear` of constant weights, whose backward pass multiplies only what is reached.

    Input of two dimensions (logits, pooled tokens), weights of another kind or with a gradient of their own, autocast,
    and transforms (`torch.vmap`) are left to PyTorch.
    """
    tokens = input.dim() == 3 and input.requires_grad and input.device.type == "cpu"
    real = weight.is_floating_point() and weight.dtype == input.dtype
    plain = type(weight) in (Tensor, nn.Parameter) and real
    constant = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    transformed = torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active()
    if tokens and plain and constant and not transformed:
        return _LinearOfReached.apply(input, weight, bias)  # pyright: ignore
    return F.linear(input, weight, bias)


class _LinearOfReached(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.set_materialize_grads(False)
        output = F.linear(input, weight, bias)
        # Some releases of PyTorch give a view, and what a Function gives as one no model may change in place.
        return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = grads
        if gradient is None:
            return None, None, None
        (weight,) = ctx.saved_tensors
        rows, columns = nonzero_rows(gradient), nonzero_columns(gradient)
        gradient, weight = gradient[..., columns], weight[columns]
        if rows == slice(0, gradient.shape[-2]):
            return gradient @ weight, None, None
        flow = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
        # Image by image, so that the last digits of a map do not depend on the batch it came in: a product of one row
        # and one of eight are different sums.
        flow[:, rows] = torch.stack([of_image[rows] @ weight for of_image in gradient])
        return flow, None, None
