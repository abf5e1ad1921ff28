"""What the backward pass holds constant (the gradient modes), and what it skips. The forward pass never changes.

full    the gradient as it is.
leaf    the attention probabilities are constant: nothing flows to queries and keys.
libra   as `leaf`; besides, the deviation of a normalisation and the gate of an activation are constant, and a product
        of two activations passes half to each (LibraGrad: Mehri et al., CVPR 2025). Then a
        backward pass splits the logit over its inputs instead of following its slope.
gim     against self-repair (GIM: Edin et al. 2025): the softmax of attention is differentiated at twice its
        temperature, so that a score which has won its row still counts; the deviation of a normalisation is constant,
        and a product of two activations passes half to each: half to the values, and a quarter, by A V and Q Kᵀ, to
        queries and keys.

Where a gradient is exactly zero, so is all that flows on from it through finite numbers: `linear` multiplies only the
rows and columns that it reaches. Behind the last attention of a model read at [CLS] that is one row of hundreds; where
attention is held constant, the values alone, a third of the columns of a layer that gives queries, keys and values.
What is skipped is found from the gradient itself, never foretold. Rows are counted along the last dimension but one; a
model that puts images there gains nothing.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from ..errors import OptionError

__all__ = [
    "QUARTER",
    "TEMPERATURE",
    "GradientMode",
    "check_gradient_mode",
    "gim_rules",
    "half_of_gradient",
    "holds_attention",
    "libra_rules",
    "linear",
    "nonzero_columns",
    "nonzero_rows",
]

GradientMode: TypeAlias = Literal["full", "leaf", "libra", "gim"]

TEMPERATURE = 2.0  # of the softmax that `gim` differentiates in the place of the model's own
QUARTER = 0.25  # of a score's gradient there: half at the product A V, and half of that at Q Kᵀ


def check_gradient_mode(mode: str) -> GradientMode:
    """Returns the gradient mode of that name.

    Raises:
        OptionError: for anything but "full", "leaf", "libra" and "gim".
    """
    for known in get_args(GradientMode):
        if mode == known:
            return known
    raise OptionError(f"gradient={mode!r} is not a gradient mode; choose one of {', '.join(get_args(GradientMode))}")


def holds_attention(mode: GradientMode) -> bool:
    """Returns whether nothing flows through the attention probabilities to queries and keys.

    Example:
        >>> [mode for mode in get_args(GradientMode) if holds_attention(mode)]
        ['leaf', 'libra']
    """
    return mode in ("leaf", "libra")


class _HeldDeviation(Function):
    """(x − mean) · [1/σ] · weight + bias with [1/σ] constant; without the mean for RMS normalisation."""

    @staticmethod
    def forward(ctx, input: Tensor, output: Tensor, scale: Tensor, weight: Tensor | None, dims: int, centred: bool):
        ctx.save_for_backward(scale, weight)
        ctx.dims, ctx.centred = tuple(range(-dims, 0)), centred
        ctx.mark_dirty(output)  # given out as it is, and no view, so that the model may change it in place
        return output

    @staticmethod
    def backward(ctx, *grads: Any):
        (grad,) = grads
        scale, weight = ctx.saved_tensors
        if ctx.centred:
            # The kernel of the whole derivative, at an input that is its own mean: what comes of σ is zero there.
            at, shape = torch.zeros_like(grad), grad.shape[ctx.dims[0] :]
            mean = torch.zeros_like(scale)
            only_input = [True, False, False]
            flow, *_ = torch.ops.aten.native_layer_norm_backward(grad, at, shape, mean, scale, weight, None, only_input)
        else:
            flow = ((grad if weight is None else grad * weight) * scale).to(grad.dtype)
        return flow, None, None, None, None, None


class _HeldGate(Function):
    """x · [gate], the gate constant."""

    @staticmethod
    def forward(ctx, input: Tensor, output: Tensor, gate: Tensor):
        ctx.save_for_backward(gate)
        ctx.mark_dirty(output)  # given out as it is, and no view, so that the model may change it in place
        return output

    @staticmethod
    def backward(ctx, *grads: Any):
        (gate,) = ctx.saved_tensors
        return grads[0] * gate, None, None


class _SharedProduct(Function):
    """a · b of two activations, half of the gradient to each."""

    @staticmethod
    def forward(ctx, left: Tensor, right: Tensor):
        ctx.save_for_backward(left, right)
        return left * right

    @staticmethod
    def backward(ctx, *grads: Any):
        left, right = ctx.saved_tensors
        half = grads[0] / 2
        return (half * right).sum_to_size(left.shape), (half * left).sum_to_size(right.shape)


class _HalfOfGradient(Function):
    @staticmethod
    def forward(ctx, input: Tensor):
        return input.view_as(input)

    @staticmethod
    def backward(ctx, *grads: Any):
        return grads[0] / 2


def half_of_gradient(tensor: Tensor) -> Tensor:
    """Returns the tensor, to which half of its gradient flows."""
    return _HalfOfGradient.apply(tensor) if tensor.requires_grad else tensor  # pyright: ignore


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Float[Tensor, "..."]:
    del cudnn_enable
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    weight = None if weight is None else weight.detach()
    bias = None if bias is None else bias.detach()
    output, _, scale = torch.native_layer_norm(input.detach(), shape, weight, bias, eps)
    return _HeldDeviation.apply(input, output, scale.to(input.device), weight, len(shape), True)  # pyright: ignore


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    weight = None if weight is None else weight.detach()
    held = input.detach()
    output = F.rms_norm(held, shape, weight, eps)
    wide = held.double() if held.dtype == torch.float64 else held.float()
    mean_square = wide.square().mean(dim=tuple(range(-len(shape), 0)), keepdim=True)
    scale = (mean_square + (torch.finfo(held.dtype).eps if eps is None else eps)).rsqrt()
    return _HeldDeviation.apply(input, output, scale, weight, len(shape), False)  # pyright: ignore


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:
    return _gated(input, F.gelu(input.detach(), approximate=approximate))


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    del inplace
    return _gated(input, F.silu(input.detach()))


def _gated(input: Tensor, output: Tensor) -> Tensor:
    gate = (output / input.detach()).nan_to_num_(0.5)  # ½ at zero, for GELU and SiLU alike
    return _HeldGate.apply(input, output, gate)  # pyright: ignore


def _is_tokens(tensor: Any, dimensions: int) -> bool:
    # Logits and pooled features have two dimensions: only inside the token stream is a sigmoid a gate.
    return isinstance(tensor, Tensor) and tensor.dim() >= dimensions and tensor.is_floating_point()


def _held(function: Callable[..., Any], dimensions: int) -> Callable[..., Any]:
    """A gate or a deviation that a model computes by itself (QuickGELU, hand-written norms): constant."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return result.detach() if args and _is_tokens(args[0], dimensions) and isinstance(result, Tensor) else result

    return rule


def _product(function: Callable[..., Any], dimensions: int) -> Callable[..., Any]:
    """A product in which both factors carry a gradient (SwiGLU): half to each."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        both = len(args) == 2 and not kwargs and all(_is_tokens(a, dimensions) and a.requires_grad for a in args)
        return _SharedProduct.apply(*args) if both else function(*args, **kwargs)

    return rule


# By these a function of one activation is written out (QuickGELU is x · σ(1.702 x)): products among them are no
# interaction. As many steps as the longest of such functions, GELU's approximation by tanh.
_ARITHMETIC = {"Mul", "Add", "Sub", "Rsub", "Div", "Neg", "Pow", "ToCopy"}
_POINTWISE = _ARITHMETIC | {"Exp", "Tanh", "Sigmoid", "Erf", "Gelu", "Silu"}
_STEPS = 12


def _made_of(tensor: Tensor) -> set[tuple[Any, int]]:
    """What the tensor is made of by pointwise operations, itself included, as places in autograd's graph."""
    found = {(tensor.grad_fn, tensor.output_nr)}
    latest = found
    for _ in range(_STEPS):
        steps = (
            fn.next_functions for fn, _ in latest if fn is not None and fn.name().split("Backward")[0] in _POINTWISE
        )
        latest = {place for step in steps for place in step if place[0] is not None} - found
        if not latest:
            break
        found = found | latest
    return found


def _interaction(function: Callable[..., Any]) -> Callable[..., Any]:
    """A product of two activations neither of which is made of the other, or of what it is made of: half to each."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        both = len(args) == 2 and not kwargs and all(_is_tokens(a, 3) and a.requires_grad for a in args)
        if both and not _made_of(args[0]) & _made_of(args[1]):
            return _SharedProduct.apply(*args)
        return function(*args, **kwargs)

    return rule


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    return input / input.detach().norm(p, dim, keepdim=True).clamp_min(eps).expand_as(input)


def _power(function: Callable[..., Any], dimensions: int) -> Callable[..., Any]:
    """x ** −½ and other negative powers are normalisers; positive ones are not."""

    def rule(base: Any, exponent: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(base, exponent, *args, **kwargs)
        held = isinstance(exponent, int | float) and exponent < 0 and _is_tokens(base, dimensions)
        return result.detach() if held else result

    return rule


PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


@cache
def libra_rules(dimensions: int = 3) -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Returns the operations that `libra` replaces, by the function that PyTorch is called with.

    Tensors of fewer `dimensions` are no token stream, and what is done to them stays as it is.

    LayerNorm and RMSNorm (x − μ)·[1/σ]; GELU and SiLU x·[gate]; sigmoid, tanh, erf, roots, norms, negative powers and
    deviations of hand-written gates and normalisers constant; products `a * b` of two activations shared. ReLU's gate
    has no slope to hold. Not covered, and differentiated as they are: products in place, `F.glu`, and activations
    other than these (mish, hardswish, softplus).
    """
    rules: dict[Callable[..., Any], Callable[..., Any]] = {
        F.layer_norm: _layer_norm,
        torch.layer_norm: _layer_norm,
        F.rms_norm: _rms_norm,
        torch.rms_norm: _rms_norm,
        F.gelu: _gelu,
        F.silu: _silu,
        F.normalize: _normalize,
        torch.linalg.vector_norm: _held(torch.linalg.vector_norm, dimensions),
        torch.pow: _power(torch.pow, dimensions),
        Tensor.pow: _power(Tensor.pow, dimensions),
        Tensor.__pow__: _power(Tensor.__pow__, dimensions),
    }
    for name in ("sigmoid", "tanh", "erf", "rsqrt", "sqrt", "std", "var", "norm"):
        for owner in (torch, Tensor):
            rules[getattr(owner, name)] = _held(getattr(owner, name), dimensions)
    for function in PRODUCTS:
        rules[function] = _product(function, dimensions)
    return rules


GATES = {F.gelu, F.silu, *(getattr(owner, name) for owner in (torch, Tensor) for name in ("sigmoid", "tanh", "erf"))}


@cache
def gim_rules() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Returns the operations that `gim` replaces, attention apart: those of `libra` but the gates of activations, which
    are differentiated; of a product of two activations half flows to each, unless it is an activation written out.
    """
    rules = {function: rule for function, rule in libra_rules().items() if function not in GATES}
    return rules | {function: _interaction(function) for function in PRODUCTS}


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
