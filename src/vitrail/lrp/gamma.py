"""The γ-rule of a linear layer and of a convolution, as a change to their gradient (Montavon et al. 2019).

Relevance goes through the model as R = x ⊙ g, g being what autograd hands on. Without the rule a linear layer's own
gradient is the ε-rule, g_x = g W. With it, positive evidence weighs more:

    Z± = x⁺ (W + γ W^±)ᵀ + x⁻ (W + γ W^∓)ᵀ + b + γ b^±        S± = g ⊙ y / Z±, each where y has that sign
    R_x = x⁺ ⊙ (S⁺ (W + γ W⁺) + S⁻ (W + γ W⁻)) + x⁻ ⊙ (S⁺ (W + γ W⁻) + S⁻ (W + γ W⁺))        g_x = R_x / x

which is the form for inputs of either sign. As W + γ W^± = (1 + γ/2) W ± (γ/2) |W|, no product but those with W and |W|
is needed, and none is divided by x:

    Z± = (1 + γ/2) x Wᵀ ± (γ/2) |x| |W|ᵀ + b + γ b^±
    g_x = (1 + γ/2) (S⁺ + S⁻) W + (γ/2) sign(x) ⊙ (S⁺ − S⁻) |W|
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["GammaRule", "with_gamma"]

# What the authors' code (zennit) adds to a divisor's magnitude.
STABILISER = 1e-6


class GammaRule:
    """γ of one call, None where the gradient is as it is: set so when the layer turns out to project for attention."""

    def __init__(self, gamma: float | None) -> None:
        self.gamma = gamma


class _WithGamma(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: Callable[[Tensor, Tensor], Tensor],
        rule: GammaRule,
    ) -> Tensor:
        unbiased = product(x, weight)
        ctx.save_for_backward(x, weight, bias, unbiased)
        ctx.product, ctx.rule = product, rule
        return unbiased.clone() if bias is None else unbiased + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, unbiased = ctx.saved_tensors
        gamma, grad = ctx.rule.gamma, grads[0]
        if gamma is None:
            return _back(ctx.product, x, weight, grad), None, None, None, None
        half = gamma / 2
        output = unbiased if bias is None else unbiased + bias
        scaled = grad * output
        magnitude = half * ctx.product(x.abs(), weight.abs())
        common = (1 + half) * unbiased
        for_positive, for_negative = common + magnitude, common - magnitude
        if bias is not None:
            for_positive = for_positive + bias + 2 * half * bias.clamp(min=0)
            for_negative = for_negative + bias + 2 * half * bias.clamp(max=0)
        positive = torch.where(output > 0, scaled / _stabilised(for_positive), 0.0)
        negative = torch.where(output < 0, scaled / _stabilised(for_negative), 0.0)
        flow = (1 + half) * _back(ctx.product, x, weight, positive + negative)
        flow += half * x.sign() * _back(ctx.product, x, weight.abs(), positive - negative)
        return flow, None, None, None, None


def with_gamma(
    x: Tensor, weight: Tensor, bias: Tensor | None, product: Callable[[Tensor, Tensor], Tensor], rule: GammaRule
) -> Tensor:
    """product(x, weight) + bias, whose gradient is by the γ-rule; the bias is shaped so that it can be added."""
    return _WithGamma.apply(x, weight, bias, product, rule)  # pyright: ignore


def _stabilised(total: Tensor) -> Tensor:
    return total + torch.where(total < 0, -STABILISER, STABILISER)


def _back(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    """What a gradient `share` at the output is at the input."""
    if product is F.linear:
        return share @ weight
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (flow,) = torch.autograd.grad(product(leaf, weight), leaf, share)
    return flow
