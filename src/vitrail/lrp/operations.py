"""Operations under relevance rules: how relevance is divided, and the two ways back through one forward pass.

The graph of one forward pass is walked backward more than once: for the gradient, and for the relevance. In the second
walk what autograd hands from operation to operation is no gradient but relevance, and each operation shares it out over
its inputs by its own rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..errors import OptionError

__all__ = [
    "Differentiable",
    "Divide",
    "Operation",
    "Precision",
    "Walk",
    "apply",
    "divide",
    "find_precision",
    "stabilised_divide",
]

Divide: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# The part of a row's root mean square below which a divisor counts as small, in the stabilised division.
SMALL = 0.01


def divide(relevance: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """R / (Z + 1e-9), and zero where Z is zero (as in the code of Chefer, Gur, Wolf).

    Near Z = 0 the quotient is as large as it comes out, so that its digits need float64.
    """
    quotient = relevance / (total + 1e-9)
    if int(torch.count_nonzero(total)) == total.numel():
        return quotient
    return quotient.masked_fill_(total == 0, 0.0)


def stabilised_divide(relevance: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """R Z / (Z² + δ²), with δ a fixed part of the root mean square of Z along its last dimension.

    Equal to R / Z where Z is large, and bounded by R / 2δ where it is small: float32 is then enough. What is lost of
    the relevance is what R / Z would have blown up.
    """
    square = total.square()
    floor = square.mean(dim=-1, keepdim=True) * SMALL**2 + torch.finfo(total.dtype).tiny
    return relevance * total / (square + floor)


class Precision(NamedTuple):
    """The type that the model runs in under relevance rules, and how these divide.

    `divides_clones`: whether relevance that comes from several readers of x is x Σ_k R_k / x, as in the authors' code,
    or Σ_k R_k, which is the same but where x is next to nothing.
    """

    dtype: torch.dtype
    divide: Divide
    divides_clones: bool


_PRECISIONS = {
    "float64": Precision(torch.float64, divide, True),
    "stabilised": Precision(torch.float32, stabilised_divide, False),
}


def find_precision(name: str, device: torch.device) -> Precision:
    """The precision of that name, on a device that has it.

    Raises:
        OptionError: for any other name than "float64" and "stabilised", and for float64 where the device has none.
    """
    if name not in _PRECISIONS:
        raise OptionError(
            f"precision={name!r} is none of {', '.join(_PRECISIONS)}: float64 runs the rules as they are written, "
            "stabilised runs them in float32 with divisors kept away from zero"
        )
    if device.type == "mps" and _PRECISIONS[name].dtype == torch.float64:
        raise OptionError(
            f"{device.type} has no float64, which the rules run in: move the model to the CPU, or take "
            "precision='stabilised'"
        )
    return _PRECISIONS[name]


Shares = tuple[Tensor | None, ...]


@dataclass
class Walk:
    """Which way the graph is being walked, and how its rules divide."""

    precision: Precision
    relevance: bool = False

    @property
    def divide(self) -> Divide:
        return self.precision.divide


class Operation:
    """One call; `uses` counts how many later calls read its output."""

    uses = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        """The operation's own result."""
        raise NotImplementedError

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        """The gradient at each input, from that at the output."""
        raise NotImplementedError

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        """The relevance of each input, from that of the output."""
        raise NotImplementedError


class Differentiable(Operation):
    """An operation whose gradient is autograd's own, through a small graph of its own."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            self._inputs = [tensor.detach().requires_grad_() for tensor in inputs]
            self._output = self.function(*self._inputs)
        return self._output.detach()

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        return torch.autograd.grad(self._output, self._inputs, flow, retain_graph=True)  # pyright: ignore


class _Applied(Function):
    @staticmethod
    def forward(ctx: Any, operation: Operation, walk: Walk, *inputs: Tensor) -> Tensor:
        output = operation.forward(*inputs)
        ctx.save_for_backward(*inputs, output)
        ctx.operation, ctx.walk = operation, walk
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *flows: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, output = ctx.saved_tensors
        operation, walk, flow = ctx.operation, ctx.walk, flows[0]
        if walk.relevance:
            if operation.uses > 1 and walk.precision.divides_clones:
                # Relevance that comes from several readers: x Σ_k R_k / x.
                flow = output * walk.divide(flow, output)
            return None, None, *operation.relevance(flow, tuple(inputs), output, walk.divide)
        return None, None, *operation.gradient(flow, tuple(inputs), output)


def apply(operation: Operation, walk: Walk, *inputs: Tensor) -> Tensor:
    """The operation's output, as part of the graph that relevance and gradients walk."""
    output = _Applied.apply(operation, walk, *inputs)  # pyright: ignore
    output.vitrail_operation = operation
    return output
