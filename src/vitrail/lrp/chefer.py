"""T-Attr's rules and the original LRP's for every operation of a Vision Transformer (Chefer, Gur, Wolf, CVPR 2021).

    linear          z⁺ rule, bias ignored                       `rules.linear_z_plus`, `rules.linear_separate`
    a + b           each its part of the sum, then rescaled     `rules.shares_of_sum`, `rules.rescale`
    several readers x Σ_k R_k / x                               `operations.apply`
    a b, A V, Q Kᵀ  z-rule, half to each factor                 here, and `attention.attention_relevance`
    convolution     z^B at the pixels                           `rules.pixels_z_box`
    norms, activations, softmax, dropout, constant factors      R passes as it is
    means and sums  z-rule, as the authors have it for pooling
    the rest        indexing, joining, reordering: R moves along

Their code knows the operations of one ViT. What others add follows the nearest of its rules: RMSNorm that of LayerNorm,
also where a model writes it out (roots and negative powers are deviations, which take nothing);
SiLU and other activations that of GELU; a product of two activations (a gated MLP) that of A V; a rotation of queries
and keys by constants (RoPE) the plain z-rule of a sum; a constant added alike to all tokens, or to attention scores,
that of a bias. Divisions by an activation, softmax that is no attention, and all other functions have none.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.gradient_modes import GradientMode, libra_rules
from ..errors import OptionError
from .operations import (
    Differentiable,
    Divide,
    Operation,
    Shares,
    Walk,
    apply,
    convolution_separate,
    linear_separate,
    linear_z_plus,
    pixels_z_box,
    rescale,
    shares_of_sum,
    source,
    where_it_flows,
)
from .tap import Call, Rules

__all__ = ["RuleSet", "chefer_rules", "find_rule_set"]

RuleSet: TypeAlias = Literal["tattr", "original"]

_PASSES = [
    "layer_norm",
    "rms_norm",
    "normalize",
    "gelu",
    "silu",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "mish",
    "softplus",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "sigmoid",
    "tanh",
    "erf",
    "logsigmoid",
]


class _Passes(Differentiable):
    """Norms and activations: R as it is."""

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        return (flow,)


class _Activates(Operation):
    """Activations: R as it is, and the slope in the type of the products."""

    def __init__(self, function: Callable[[Tensor], Tensor], products: torch.dtype) -> None:
        self.function, self.products = function, products

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(inputs[0])

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        with torch.enable_grad():
            leaf = inputs[0].detach().to(self.products).requires_grad_()
            return torch.autograd.grad(self.function(leaf), leaf, flow.to(self.products))

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        return (flow,)


class _Pools(Differentiable):
    """Means and sums: x ⊙ ∂(S · output) with S = R / output."""

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        (back,) = self.gradient(divide(flow, output), inputs, output)
        return (None if back is None else inputs[0] * back,)


class _Multiplies(Differentiable):
    """A V, Q Kᵀ and other matrix products of two activations: the z-rule, half to each."""

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        backs = self.gradient(divide(flow, output), inputs, output)
        return tuple(None if back is None else x * back / 2 for x, back in zip(inputs, backs, strict=True))


class _Holds(Differentiable):
    """The deviation in a norm that a model writes out: it takes no relevance."""

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        return (None,)


class _Normalises(Differentiable):
    """An activation times or over such a deviation: R passes to the activation as it is."""

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        return flow, None


class _Gates(Differentiable):
    """a ⊙ b of two activations: the z-rule gives each the whole R, of which it gets half."""

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        return tuple((flow / 2).sum_to_size(x.shape) for x in inputs)


class _Linear(Operation):
    """The way back multiplies in the type of the products; the sums of the z⁺ rule have one sign, so that no digit is
    lost to cancellation.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rules: RuleSet, products: torch.dtype) -> None:
        self.weight, self.bias, self.rules, self.products = weight, bias, rules, products

    def forward(self, *inputs: Tensor) -> Tensor:
        output = F.linear(inputs[0], self.weight, self.bias)
        self.weight = source(self.weight)  # what it was converted to takes twice the room
        return output

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        weight = self.weight.to(self.products)
        return (where_it_flows(flow.to(self.products), lambda rows, _: rows @ weight, inputs[0]),)

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        weight = self.weight.to(self.products)

        def share(rows: Tensor, chosen: Any) -> Tensor:
            x = inputs[0].flatten(0, -2)[chosen].to(self.products)
            if self.rules == "original":
                return linear_separate(x, weight, rows, divide)
            signed = output.flatten(0, -2)[chosen].to(self.products)
            signed = signed if self.bias is None else signed - self.bias.to(self.products)
            return linear_z_plus(x, weight, signed, rows, divide)

        return (where_it_flows(flow.to(self.products), share, inputs[0]),)


class _Add(Operation):
    """a + factor · b; `rescales` says whether the shares are rescaled, and which dimension distinguishes the images."""

    def __init__(self, factor: float, operands: tuple[Any, Any], rescales: int | None) -> None:
        self.factor, self.operands, self.rescales = factor, operands, rescales

    def forward(self, *inputs: Tensor) -> Tensor:
        left, right = self._both(inputs)
        return left + right if self.factor == 1 else left + self.factor * right

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        return self._carried(flow, self.factor * flow if self.factor != 1 else flow)

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        left, right = self._both(inputs)
        shares = shares_of_sum(left, right if self.factor == 1 else self.factor * right, output, flow, divide)
        return self._carried(*(shares if self.rescales is None else rescale(*shares, flow, divide, self.rescales)))

    def _both(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Returns both terms: an activation is an input, a constant is kept here."""
        rest = iter(inputs)
        left, right = (next(rest) if operand is None else operand for operand in self.operands)
        return left, right

    def _carried(self, *shares: Tensor) -> Shares:
        return tuple(share for share, operand in zip(shares, self.operands, strict=True) if operand is None)


class _Convolution(Operation):
    def __init__(self, call: Call) -> None:
        self.call = call
        self.weight = call.argument(1, "weight")

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._convolve(inputs[0], self.weight, self.call.argument(2, "bias"))

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        raise AssertionError("the gradient's walk ends at the attention")

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        # As in the authors' code, three channels are pixels.
        if inputs[0].shape[1] == 3:
            return (pixels_z_box(self._convolve, inputs[0], self.weight, flow),)
        return (convolution_separate(self._convolve, inputs[0], self.weight, flow, divide),)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kwargs = {key: value for key, value in self.call.kwargs.items() if key not in ("input", "weight", "bias")}
        return F.conv2d(x, weight, bias, *self.call.args[3:], **kwargs)


def chefer_rules(walk: Walk, rules: RuleSet, gradient: GradientMode) -> Rules:
    """Returns the rules by the name of the function that a model calls; the gradient's walk is in the mode
    `gradient`.
    """
    held = {function.__name__: rule for function, rule in libra_rules().items()} if gradient == "libra" else {}

    def passes(call: Call) -> Tensor:
        kwargs = {key: value for key, value in call.kwargs.items() if key != "inplace"}
        if any(isinstance(value, Tensor) and value.requires_grad for value in (*call.args[1:], *kwargs.values())):
            raise call.refuse("its parameters depend on the image")
        function = held.get(call.name, call.function)
        first = kwargs.pop("input", None) if not call.args else call.args[0]

        def whole(x: Tensor) -> Tensor:
            return function(x, *call.args[1:], **kwargs)

        plain = not any(isinstance(value, Tensor) for value in (*call.args[1:], *kwargs.values()))
        return apply(_Activates(whole, walk.precision.products) if plain else _Passes(whole), walk, first)

    def holds(call: Call) -> Tensor:
        function = held.get(call.name, call.function)
        output = apply(_Holds(lambda x: function(x, *call.args[1:], **call.kwargs)), walk, call.args[0])
        output.vitrail_deviation = True  # pyright: ignore[reportAttributeAccessIssue]
        return output

    def power(call: Call) -> Tensor:
        exponent = call.argument(1, "exponent")
        if not isinstance(exponent, int | float):
            raise call.refuse("its exponent is a tensor")
        return holds(call) if exponent < 0 or exponent == 0.5 else passes(call)

    def pools(call: Call) -> Tensor:
        return apply(_Pools(lambda x: call.function(x, *call.args[1:], **call.kwargs)), walk, call.args[0])

    def linear(call: Call) -> Tensor:
        x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            raise call.refuse("its weight depends on the image")
        return apply(_Linear(weight, bias, rules, walk.precision.products), walk, x)

    def matmul(call: Call) -> Tensor:
        left, right = call.args
        if left.requires_grad and right.requires_grad:
            output = apply(_Multiplies(call.function), walk, left, right)
            output.vitrail_scores = True  # pyright: ignore[reportAttributeAccessIssue]
            return output
        if getattr(left, "vitrail_attention", False):
            # The first attention that is walked to: its values are taken as given.
            return apply(_Multiplies(lambda attention: call.function(attention, right)), walk, left)
        if left.requires_grad and right.dim() == 2:
            return apply(_Linear(right.T, None, rules, walk.precision.products), walk, left)
        raise call.refuse(f"of shapes {tuple(left.shape)} and {tuple(right.shape)}, one of them constant")

    def einsum(call: Call) -> Tensor:
        equation, operands = call.args[0], list(_flat(call.args[1:]))
        if len(operands) == 2 and all(tensor.requires_grad for tensor in operands):
            output = apply(_Multiplies(lambda a, b: torch.einsum(equation, a, b)), walk, *operands)
            output.vitrail_scores = True  # pyright: ignore[reportAttributeAccessIssue]
            return output
        if len(operands) == 2 and getattr(operands[0], "vitrail_attention", False):
            return apply(
                _Multiplies(lambda attention: torch.einsum(equation, attention, operands[1])), walk, operands[0]
            )
        raise call.refuse("with a constant")

    def multiply(call: Call) -> Any:
        left, right = call.args[:2]
        if _carries(left) and _carries(right):
            function = held.get("mul", torch.mul)
            if getattr(left, "vitrail_deviation", False):
                left, right = right, left
            if getattr(right, "vitrail_deviation", False):
                return apply(_Normalises(function), walk, left, right)
            return apply(_Gates(function), walk, left, right)
        activation, factor = (left, right) if _carries(left) else (right, left)
        if isinstance(factor, Tensor) and torch.broadcast_shapes(factor.shape, activation.shape) != activation.shape:
            raise call.refuse("a constant larger than the activation")
        return _scaled(activation, lambda x: x * factor)

    def divide(call: Call) -> Any:
        left, right = call.args[:2]
        if _carries(left) and getattr(right, "vitrail_deviation", False) and not call.kwargs.get("rounding_mode"):
            return apply(_Normalises(torch.div), walk, left, right)
        if _carries(right) or call.kwargs.get("rounding_mode"):
            raise call.refuse("its divisor depends on the image")
        return _scaled(left, lambda x: x / right)

    def negate(call: Call) -> Any:
        return _scaled(call.args[0], torch.neg)

    def _scaled(activation: Tensor, function: Any) -> Tensor:
        output = apply(_Passes(function), walk, activation)
        output.vitrail_scores = getattr(activation, "vitrail_scores", False)  # pyright: ignore[reportAttributeAccessIssue]
        return output

    def add(call: Call) -> Any:
        return total(call, call.args[0], call.argument(1, "other"), 1.0)

    def subtract(call: Call) -> Any:
        return total(call, call.args[0], call.argument(1, "other"), -1.0)

    def subtract_reversed(call: Call) -> Any:
        return total(call, call.argument(1, "other"), call.args[0], -1.0)

    def total(call: Call, left: Any, right: Any, factor: float) -> Any:
        factor *= call.kwargs.get("alpha", 1)
        if not (_carries(left) and _carries(right)):
            activation, constant = (left, right) if _carries(left) else (right, left)
            if _is_bias(activation, constant, call.tap.images):
                if activation is left:
                    return _scaled(activation, lambda x: x + factor * constant)
                return _scaled(activation, lambda x: constant + factor * x)
        carried = [operand for operand in (left, right) if _carries(operand)]
        shape = torch.broadcast_shapes(left.shape, right.shape)
        if any(operand.shape != shape for operand in carried):
            raise call.refuse(f"of shapes {tuple(left.shape)} and {tuple(right.shape)}")
        # In four dimensions it is a rotation of queries or keys: a linear map, not a residual sum.
        rotation = len(carried) == 2 and len(shape) == 4
        rescales = None if rules == "original" or rotation else call.tap.images_dimension(carried[0])
        operands = tuple(None if _carries(operand) else operand for operand in (left, right))
        return apply(_Add(factor, operands, rescales), walk, *carried)  # pyright: ignore

    def convolve(call: Call) -> Tensor:
        x = call.argument(0, "input")
        return apply(_Convolution(call), walk, x)

    table = dict.fromkeys(_PASSES, passes) | dict.fromkeys(("rsqrt", "sqrt", "std", "norm", "vector_norm"), holds)
    table |= dict.fromkeys(("pow", "__pow__"), power) | {"square": passes}
    table |= dict.fromkeys(("mean", "sum", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool2d"), pools)
    table |= dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), matmul)
    table |= dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_"), multiply)
    table |= dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__", "div_"), divide)
    table |= dict.fromkeys(("add", "__add__", "__radd__", "__iadd__", "add_"), add)
    table |= dict.fromkeys(("sub", "subtract", "__sub__", "__isub__", "sub_"), subtract)
    table |= dict.fromkeys(("rsub", "__rsub__"), subtract_reversed)
    table |= {"neg": negate, "negative": negate, "__neg__": negate}
    return table | {"linear": linear, "einsum": einsum, "conv2d": convolve}


def _carries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _is_bias(activation: Tensor, constant: Any, images: int) -> bool:
    """Returns whether a constant is a number, the same for all tokens, or added to attention scores.

    A query that pools the tokens is one token by itself: added to what it has read, it is the other part of a residual
    sum, in a batch of one image as in any other.
    """
    if not isinstance(constant, Tensor) or getattr(activation, "vitrail_scores", False):
        return True
    if constant.dim() == activation.dim() >= 3 and activation.numel() == images * activation.shape[-1]:
        return False
    return constant.numel() == constant.shape[-1] if constant.dim() else True


def _flat(value: Any) -> Any:
    for item in value:
        yield from _flat(item) if isinstance(item, list | tuple) else (item,)


def find_rule_set(name: str) -> RuleSet:
    """Returns the set of rules of that name.

    Raises:
        OptionError: for any other name than "tattr" and "original".
    """
    for known in get_args(RuleSet):
        if name == known:
            return known
    raise OptionError(f"rules={name!r} is none of {', '.join(get_args(RuleSet))}")
