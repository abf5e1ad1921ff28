"""The rules of AttnLRP and CP-LRP, as changes to the gradient: the relevance of x is then x ⊙ g.

    linear, convolution   γ-rule (0: ε-rule; None: the gradient as it is, as for projections around attention)
    norms                 the deviation constant, the mean not
    activations           f(x) / x in the place of f′(x)                                        AttnLRP, Eq. 9
    a b, A V, Q Kᵀ        half to each factor                                                   AttnLRP, Eq. 7
    softmax               AttnLRP: its gradient. CP-LRP: attention is constant, and A V passes all to V
    the rest              linear, so that the gradient is the ε-rule; or refused

AttnLRP: Achtibat et al., ICML 2024. CP-LRP: Ali et al., ICML 2022.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..attention.calls import AttentionCall
from ..attention.gradient_modes import libra_rules
from ..attention.relevance_row import attention_backward
from ..errors import OptionError
from .attention import refuse_moving_bias
from .operations import Precision, source, where_it_flows
from .tap import Call, RelevanceTap, Rules

__all__ = [
    "AttentionRule",
    "AttnLRPTap",
    "GammaRule",
    "SharedAttention",
    "attnlrp_rules",
    "find_attention_rule",
    "with_gamma",
]

# The γ-rule of a linear layer and of a convolution, as a change to their gradient (Montavon et al. 2019).
#
# Relevance goes through the model as R = x ⊙ g, g being what autograd hands on. Without the rule a linear layer's own
# gradient is the ε-rule, g_x = g W. With it, positive evidence weighs more:
#
#     Z± = x⁺ (W + γ W^±)ᵀ + x⁻ (W + γ W^∓)ᵀ + b + γ b^±        S± = g ⊙ y / Z±, each where y has that sign
#     R_x = x⁺ ⊙ (S⁺ (W + γ W⁺) + S⁻ (W + γ W⁻)) + x⁻ ⊙ (S⁺ (W + γ W⁻) + S⁻ (W + γ W⁺))        g_x = R_x / x
#
# which is the form for inputs of either sign. As W + γ W^± = (1 + γ/2) W ± (γ/2) |W|, only the products with W and
# |W| are needed, and none is divided by x. With s the sign of y, S the one of S± that is not zero, and y = x Wᵀ + b:
#
#     s Z = |y| + (γ/2) (s (y − b) + |x| |W|ᵀ) + γ (s b)⁺        a sum of numbers that are not negative
#     g_x = (1 + γ/2) S W + (γ/2) sign(x) ⊙ (s S) |W|
#
# so that float32 is enough on the way back. It is not on the way forward: where y or x is next to nothing, its digits
# decide whether it is above zero or below, and with it a whole share.

# What the authors' code (zennit) adds to a divisor's magnitude.
STABILISER = 1e-6


class GammaRule:
    """γ of one call, None where the gradient is as it is: set so when the layer turns out to project for attention.

    `products` is the type in which the way back multiplies.
    """

    def __init__(self, gamma: float | None, products: torch.dtype) -> None:
        self.gamma, self.products = gamma, products


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
        output = product(x, weight)
        output = output if bias is None else output + bias
        ctx.save_for_backward(x.to(rule.products), source(weight), bias, output.to(rule.products))
        ctx.product, ctx.rule = product, rule
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, output = ctx.saved_tensors
        product, gamma = ctx.product, ctx.rule.gamma
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)

        def back(grad: Tensor, chosen: Any) -> Tensor:
            if gamma is None:
                return _back(product, x, weight, grad)
            half, inputs, y = gamma / 2, x, output
            if product is F.linear:
                inputs, y = x.flatten(0, -2)[chosen], output.flatten(0, -2)[chosen]
            divisor = y.abs()
            share = grad * divisor
            if gamma == 0:
                return _back(product, inputs, weight, share.div_(divisor.add_(STABILISER)))
            sign, magnitude = y.sign(), weight.abs()
            divisor.add_(product(inputs.abs(), magnitude), alpha=half)
            divisor.addcmul_(sign, y if bias is None else y - bias, value=half)
            if bias is not None:
                divisor.add_((sign * bias).clamp_(min=0), alpha=gamma)
            share.div_(divisor.add_(STABILISER))
            flow = _back(product, inputs, magnitude, sign.mul_(share)).mul_(half).mul_(inputs.sign())
            return flow.add_(_back(product, inputs, weight, share), alpha=1 + half)

        grad = grads[0].to(x.dtype)
        flow = where_it_flows(grad, back, x) if product is F.linear else back(grad, slice(None))
        return flow, None, None, None, None


def with_gamma(
    x: Tensor, weight: Tensor, bias: Tensor | None, product: Callable[[Tensor, Tensor], Tensor], rule: GammaRule
) -> Tensor:
    """Returns product(x, weight) + bias, whose gradient is by the γ-rule; the bias is shaped so that it can be
    added.
    """
    return _WithGamma.apply(x, weight, bias, product, rule)  # pyright: ignore


def _back(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    """Returns the gradient at the input of a gradient `share` at the output."""
    if product is F.linear:
        return share @ weight
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (flow,) = torch.autograd.grad(product(leaf, weight), leaf, share)
    return flow


AttentionRule: TypeAlias = Literal["attn_lrp", "cp_lrp"]

# Linear maps, whose gradient is the ε-rule.
_LINEAR = [
    "add",
    "__add__",
    "__radd__",
    "sub",
    "subtract",
    "__sub__",
    "__rsub__",
    "rsub",
    "neg",
    "negative",
    "__neg__",
    "mean",
    "sum",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "avg_pool2d",
]
# Their gate or deviation is held constant, which is f(x) / x for x · gate(x).
_HELD = ["layer_norm", "rms_norm", "normalize", "gelu", "silu", "sqrt", "rsqrt", "std", "var", "norm", "vector_norm"]
_ELEMENTWISE = [
    "sigmoid",
    "tanh",
    "erf",
    "softplus",
    "mish",
    "hardswish",
    "hardsigmoid",
    "elu",
    "selu",
    "celu",
    "logsigmoid",
]
# Linear in pieces: the gradient is f(x) / x.
_PIECEWISE = ["relu", "leaky_relu"]


class _Shared(Function):
    """A product of two activations, half of the gradient to each."""

    @staticmethod
    def forward(ctx: Any, product: Tensor) -> Tensor:
        return product.view_as(product)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0] / 2


class _Identity(Function):
    """An activation y = f(x) with y / x in the place of its slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(x, output)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, output = ctx.saved_tensors
        return grads[0] * output / (x + torch.where(x < 0, -1e-10, 1e-10)), None


class SharedAttention:
    """The visitor: a quarter of the gradient to queries and keys and half to values, or all of it to the values."""

    def __init__(self, rule: AttentionRule, products: torch.dtype) -> None:
        self.rule: AttentionRule = rule
        self.products = products

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        refuse_moving_bias(call)
        return _Attention.apply(call.query, call.key, call.value, call, self.rule, self.products)  # pyright: ignore

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        attention = torch.softmax(scores, dim=-1)
        return attention.detach() if self.rule == "cp_lrp" else attention


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        call: AttentionCall,
        rule: AttentionRule,
        products: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(query.to(products), key.to(products), value.to(products))
        ctx.rest, ctx.rule = (call.mask, call.causal, call.scale), rule
        return call.output()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        call = AttentionCall(*ctx.saved_tensors, *ctx.rest)
        through = ctx.rule == "attn_lrp"
        query, key, value = attention_backward(call, grads[0], through_scores=through, through_value=True)
        if through:
            assert query is not None
            assert key is not None
            assert value is not None
            query, key, value = query / 4, key / 4, value / 2
        return query, key, value, None, None, None


_SUMS = frozenset(("add", "__add__", "__radd__", "__iadd__", "add_"))


class AttnLRPTap(RelevanceTap):
    """Follows which linear layers make the queries, keys and values, and which reads the attention's output.

    A tensor's lineage holds the γ-rules of the linear layers that it comes from by anything but another linear layer or
    a sum, and whether it comes from attention so.
    """

    sums: Callable[[Call, Tensor], None] | None = (
        None  # told each sum, and what it comes to, before the first attention
    )

    def _met_activation(self, call: Call) -> Any:
        result = super()._met_activation(call)
        if self.sums is not None and call.name in _SUMS and not self.attention_calls:
            self.sums(call, result)
        if call.name in ("linear", "matmul", "__matmul__") and hasattr(result, "vitrail_lineage"):
            return result
        residual = call.name in ("add", "__add__", "__iadd__", "add_") and result.dim() < 4
        _inherit(result, () if residual else (call.args, tuple(call.kwargs.values())))
        return result

    def _met_attention(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        result = super()._met_attention(func, name, args, kwargs)
        if func is not F.multi_head_attention_forward:
            self._projected(args, kwargs)
            _inherit(result, (), from_attention=True)
        return result

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = super()._attend(query, key, value, *args, **kwargs)
        # nn.MultiheadAttention comes here on its own ways.
        self._projected((query, key, value), {})
        _inherit(output, (), from_attention=True)
        return output

    def _projected(self, args: tuple, kwargs: dict[str, Any]) -> None:
        for rule in lineage_of((args, tuple(kwargs.values())))[0]:
            rule.gamma = None


def lineage_of(value: Any) -> tuple[frozenset[GammaRule], bool]:
    """Returns the γ-rules that tensors come from, and whether any of them comes from attention."""
    if isinstance(value, Tensor):
        return getattr(value, "vitrail_lineage", (frozenset(), False))
    rules: frozenset[GammaRule] = frozenset()
    attention = False
    for item in value if isinstance(value, list | tuple) else ():
        more, also = lineage_of(item)
        rules, attention = rules | more, attention or also
    return rules, attention


def _inherit(result: Any, sources: Any, from_attention: bool = False) -> None:
    rules, attention = lineage_of(sources)
    for tensor in result if isinstance(result, list | tuple) else (result,):
        if isinstance(tensor, Tensor):
            tensor.vitrail_lineage = rules, attention or from_attention  # pyright: ignore[reportAttributeAccessIssue]


def attnlrp_rules(conv_gamma: float | None, linear_gamma: float | None, precision: Precision) -> Rules:
    """Returns the rules by the name of the function that a model calls."""
    held = {function.__name__: rule for function, rule in libra_rules().items()}

    def plain(call: Call) -> Any:
        return call.plain()

    def hold(call: Call) -> Any:
        kwargs = {key: value for key, value in call.kwargs.items() if key != "inplace"}
        result = held[call.name](*call.args, **kwargs)
        if call.name in ("sqrt", "rsqrt", "std", "var", "norm", "vector_norm"):
            # Of two-dimensional features too, unlike libra's.
            return result.detach()
        return result

    def elementwise(call: Call) -> Tensor:
        kwargs = {key: value for key, value in call.kwargs.items() if key != "inplace"}
        with torch.no_grad():
            output = call.function(*call.args, **kwargs)
        return _Identity.apply(call.args[0], output)  # pyright: ignore

    def power(call: Call) -> Tensor:
        exponent = call.argument(1, "exponent")
        if not isinstance(exponent, int | float):
            raise call.refuse("its exponent is a tensor")
        # Negative powers and roots are the deviations of norms that a model writes out, as rsqrt() and sqrt() are.
        return call.plain().detach() if exponent < 0 or exponent == 0.5 else elementwise(call)

    def piecewise(call: Call) -> Tensor:
        call.kwargs.pop("inplace", None)
        return call.plain()

    def linear(call: Call) -> Tensor:
        x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            raise call.refuse("its weight depends on the image")
        return _linear(x, weight, bias)

    def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sources, from_attention = lineage_of(x)
        if from_attention:
            # It reads the attention's output; if that was written out, the values' own layer is in the lineage too.
            for rule in sources:
                rule.gamma = None
        rule = GammaRule(None if from_attention else linear_gamma, precision.products)
        output = with_gamma(x, weight, bias, F.linear, rule)
        output.vitrail_lineage = frozenset((rule,)), False  # pyright: ignore[reportAttributeAccessIssue]
        return output

    def matmul(call: Call) -> Tensor:
        left, right = call.args
        if left.requires_grad and right.requires_grad:
            return _Shared.apply(call.plain())  # pyright: ignore
        if left.requires_grad and right.dim() == 2:
            return _linear(left, right.T, None)
        # Constant attention times values, or a constant mixing of tokens.
        return call.plain()

    def multiply(call: Call) -> Any:
        both = all(isinstance(value, Tensor) and value.requires_grad for value in call.args[:2])
        if not both:
            return call.args[0] * call.args[1]
        return _Shared.apply(torch.mul(*call.args[:2]))  # pyright: ignore

    def divide(call: Call) -> Any:
        if isinstance(call.args[1], Tensor) and call.args[1].requires_grad:
            raise call.refuse("its divisor depends on the image")
        return call.args[0] / call.args[1]

    def out_of_place(call: Call) -> Any:
        function = torch.add if "add" in call.name else torch.sub
        return function(*call.args, **call.kwargs)

    def convolve(call: Call) -> Tensor:
        kwargs = {key: value for key, value in call.kwargs.items() if key not in ("input", "weight", "bias")}
        bias = call.argument(2, "bias")

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, None, *call.args[3:], **kwargs)

        added = None if bias is None else bias.view(1, -1, 1, 1)
        # In the forward pass's own type: few products, for which GPUs take fewer digits than float32 has (TF32).
        rule = GammaRule(conv_gamma, precision.dtype)
        return with_gamma(call.argument(0, "input"), call.argument(1, "weight"), added, product, rule)

    table = dict.fromkeys(_LINEAR, plain)
    table |= dict.fromkeys(("__iadd__", "__isub__", "add_", "sub_"), out_of_place)
    table |= {name: hold for name in _HELD if name in held}
    table |= dict.fromkeys(("pow", "__pow__"), power) | {"square": elementwise}
    table |= dict.fromkeys(_ELEMENTWISE, elementwise) | dict.fromkeys(_PIECEWISE, piecewise)
    table |= dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), matmul)
    table |= dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_"), multiply)
    table |= dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__", "div_"), divide)
    return table | {"linear": linear, "conv2d": convolve}


def find_attention_rule(name: str) -> AttentionRule:
    """Returns the rule of that name for what happens inside attention.

    Raises:
        OptionError: for any other name than "attn_lrp" and "cp_lrp".
    """
    for known in get_args(AttentionRule):
        if name == known:
            return known
    raise OptionError(f"rules={name!r} is none of {', '.join(get_args(AttentionRule))}")
