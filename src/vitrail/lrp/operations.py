"""One operation of the model under relevance rules: the same forward as ever, and two ways back.

The graph of one forward pass is walked backward more than once: for the gradient, and for the relevance. In the second
walk what autograd hands from operation to operation is no gradient but relevance, and each operation shares it out over
its inputs by its own rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .division import Divide, Precision

__all__ = ["Differentiable", "Operation", "Walk", "apply"]

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
