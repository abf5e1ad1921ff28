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
    "convolution_separate",
    "divide",
    "find_precision",
    "linear_separate",
    "linear_z_plus",
    "pixels_z_box",
    "rescale",
    "shares_of_sum",
    "source",
    "stabilised_divide",
    "where_it_flows",
]

Divide: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# The part of a row's root mean square below which a divisor counts as small, in the stabilised division.
SMALL = 0.01


def divide(relevance: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns R / (Z + 1e-9), and zero where Z is zero (as in the code of Chefer, Gur, Wolf).

    Near Z = 0 the quotient is as large as it comes out, so that its digits need float64.
    """
    quotient = relevance / (total + 1e-9)
    if int(torch.count_nonzero(total)) == total.numel():
        return quotient
    return quotient.masked_fill_(total == 0, 0.0)


def stabilised_divide(relevance: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Returns R Z / (Z² + δ²), with δ a fixed part of the root mean square of Z along its last dimension.

    Equal to R / Z where Z is large, and bounded by R / 2δ where it is small: float32 is then enough. What is lost of
    the relevance is what R / Z would have blown up.
    """
    square = total.square()
    floor = square.mean(dim=-1, keepdim=True) * SMALL**2 + torch.finfo(total.dtype).tiny
    return relevance * total / (square + floor)


class Precision(NamedTuple):
    """The type that the model runs in under relevance rules, that of products on the way back, and how rules divide.

    The forward pass decides the divisors and the signs, whose digits a map hangs on; what flows back is only multiplied
    by them. `divides_clones`: whether relevance that comes from several readers of x is x Σ_k R_k / x, as in the
    authors' code, or Σ_k R_k, which is the same but where x is next to nothing.
    """

    dtype: torch.dtype
    products: torch.dtype
    divide: Divide
    divides_clones: bool


_PRECISIONS = {
    "mixed": Precision(torch.float64, torch.float32, divide, True),
    "float64": Precision(torch.float64, torch.float64, divide, True),
    "stabilised": Precision(torch.float32, torch.float32, stabilised_divide, False),
}


def find_precision(name: str, device: torch.device, model: torch.dtype = torch.float32) -> Precision:
    """Returns the precision of that name, on a device that has it, for a model of the type `model`.

    "mixed" is "float64" for a model in float64, and where products of float32 are set to keep fewer digits (TF32).

    Raises:
        OptionError: for any other name than "mixed", "float64" and "stabilised", and for the first two where the device
            has no float64.
    """
    if name not in _PRECISIONS:
        raise OptionError(
            f"precision={name!r} is none of {', '.join(_PRECISIONS)}: float64 runs the rules as they are written, "
            "mixed multiplies in float32 on the way back, stabilised runs all in float32 with divisors kept away from "
            "zero"
        )
    if name == "mixed" and (model == torch.float64 or not _float32_is_whole()):
        name = "float64"
    if device.type == "mps" and _PRECISIONS[name].dtype == torch.float64:
        raise OptionError(
            f"{device.type} has no float64, which the rules run in: move the model to the CPU, or take "
            "precision='stabilised'"
        )
    return _PRECISIONS[name]


def _float32_is_whole() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for one backend alone, by PyTorch's newer functions
        return False


def source(weight: Tensor) -> Tensor:
    """Returns the model's own tensor that a weight was converted from by `RelevanceTap`, or the weight."""
    return getattr(weight, "vitrail_source", weight)


def where_it_flows(flow: Tensor, back: Callable[[Tensor, Any], Tensor], like: Tensor) -> Tensor:
    """Returns back(rows, chosen) of the rows that carry anything, zero for the others, in the shape of `like`.

    In the last block only the tokens that the head reads carry any. Away from the CPU all rows are taken: to look would
    be to wait for the device.
    """
    rows = flow.flatten(0, -2)
    if flow.device.type != "cpu" or bool(rows[-1].any()):
        # Most often all rows do, and a look at the last one tells.
        return back(rows, slice(None)).view(like.shape)
    carries = rows.any(dim=-1)
    if int(carries.sum()) * 2 > len(rows):
        return back(rows, slice(None)).view(like.shape)
    result = rows.new_zeros(len(rows), like.shape[-1])
    result[carries] = back(rows[carries], carries)
    return result.view(like.shape)


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
        """Returns the operation's own result."""
        raise NotImplementedError

    def gradient(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor) -> Shares:
        """Returns the gradient at each input, from that at the output."""
        raise NotImplementedError

    def relevance(self, flow: Tensor, inputs: tuple[Tensor, ...], output: Tensor, divide: Divide) -> Shares:
        """Returns the relevance of each input, from that of the output."""
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
    """Returns the operation's output, as part of the graph that relevance and gradients walk."""
    output = _Applied.apply(operation, walk, *inputs)  # pyright: ignore
    output.vitrail_operation = operation
    return output


Convolution: TypeAlias = Callable[[Tensor, Tensor], Tensor]


# The rules of Chefer, Gur, Wolf (CVPR 2021) by which an operation shares its relevance R out over its inputs. Two sets
# go by that work, and they differ in two places. "tattr" is the authors' own method: a linear layer conserves
# relevance, and a residual sum is rescaled so that it does. "original" is the LRP that they compare with: a linear
# layer gives the whole of R to its positive and again to its negative part, so that relevance can double at every
# layer, and a residual sum is not rescaled, so that it can explode. All take relevance and give relevance; `divide` is
# R / Z, guarded near zero.


def linear_z_plus(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    signed: Float[Tensor, "rows outputs"],
    relevance: Float[Tensor, "rows outputs"],
    divide: Divide,
) -> Float[Tensor, "rows inputs"]:
    """Returns R_x = x⁺ ⊙ (S W⁺) + x⁻ ⊙ (S W⁻) with S = R / Z and Z = x⁺ W⁺ᵀ + x⁻ W⁻ᵀ: conserves ΣR (the z⁺ rule, α = 1,
    β = 0).

    `signed` is x Wᵀ, which the forward pass has computed. As x⁺ W⁺ᵀ + x⁻ W⁻ᵀ = (x Wᵀ + |x| |W|ᵀ) / 2, and likewise on
    the way back, three matrix products do instead of four.
    """
    magnitude, size = weight.abs(), x.abs()
    share = divide(relevance, torch.addmm(signed, size, magnitude.T, beta=0.5, alpha=0.5))
    return size.mul_(share @ magnitude).addcmul_(x, share @ weight).mul_(0.5)


def linear_separate(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    relevance: Float[Tensor, "rows outputs"],
    divide: Divide,
) -> Float[Tensor, "rows inputs"]:
    """Returns R_x = x⁺ ⊙ (R / Z₁ W⁺) + x⁻ ⊙ (R / Z₂ W⁻), Z₁ = x⁺ W⁺ᵀ and Z₂ = x⁻ W⁻ᵀ: each part gets the whole of R."""
    shares = torch.zeros_like(x)
    for part, half in ((x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))):
        shares += part * (divide(relevance, part @ half.T) @ half)
    return shares


def shares_of_sum(
    left: Float[Tensor, "..."],
    right: Float[Tensor, "..."],
    total: Float[Tensor, "..."],
    relevance: Float[Tensor, "..."],
    divide: Divide,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Returns a R / (a + b) and b R / (a + b)."""
    share = divide(relevance, total)
    return left * share, right * share


def rescale(
    left: Float[Tensor, "..."],
    right: Float[Tensor, "..."],
    relevance: Float[Tensor, "..."],
    divide: Divide,
    images: int = 0,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Returns the two shares of a sum, each times a number per image, so that their totals share out ΣR by |Σr_a| :
    |Σr_b|.

    The sums run over one image; `images` is the dimension that distinguishes the images. The authors' code sums over
    the whole batch, which is right for one image only.
    """

    def per_image(tensor: Tensor) -> Tensor:
        return tensor.movedim(images, 0).flatten(1).sum(dim=1, keepdim=True)

    sums = per_image(left), per_image(right)
    magnitude = sums[0].abs() + sums[1].abs()
    whole = per_image(relevance)
    first, second = (divide(divide(own.abs(), magnitude) * whole, own) for own in sums)
    column = [1] * left.dim()
    column[images] = -1
    return left * first.view(column), right * second.view(column)


def pixels_z_box(
    convolve: Convolution,
    x: Float[Tensor, "images channels height width"],
    weight: Float[Tensor, "width_out channels rows cols"],
    relevance: Float[Tensor, "images width_out rows_out cols_out"],
) -> Float[Tensor, "images channels height width"]:
    """Returns the z^B rule at the pixels, bounded by the least and largest value l and h of each image.

    R_x = x ⊙ (S ∗ᵀ W) − l ⊙ (S ∗ᵀ W⁺) − h ⊙ (S ∗ᵀ W⁻) with S = R / Z and Z = x ∗ W − l ∗ W⁺ − h ∗ W⁻ + 1e-9.
    """
    low = x.amin(dim=(1, 2, 3), keepdim=True).expand_as(x)
    high = x.amax(dim=(1, 2, 3), keepdim=True).expand_as(x)
    parts = ((1, x, weight), (-1, low, weight.clamp(min=0)), (-1, high, weight.clamp(max=0)))
    share = relevance / (sum(sign * convolve(part, kernel) for sign, part, kernel in parts) + 1e-9)
    return torch.stack([sign * part * _back(convolve, part, kernel, share) for sign, part, kernel in parts]).sum(dim=0)


def convolution_separate(
    convolve: Convolution,
    x: Float[Tensor, "images channels height width"],
    weight: Float[Tensor, "width_out channels rows cols"],
    relevance: Float[Tensor, "images width_out rows_out cols_out"],
    divide: Divide,
) -> Float[Tensor, "images channels height width"]:
    """Returns `linear_separate` for a convolution beyond the first, which both sets of rules treat alike."""
    shares = torch.zeros_like(x)
    for part, half in ((x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))):
        shares += part * _back(convolve, part, half, divide(relevance, convolve(part, half)))
    return shares


def _back(convolve: Convolution, x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    """Returns the transposed convolution of `share`: what a gradient at the output would be at the input."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (flow,) = torch.autograd.grad(convolve(leaf, weight), leaf, share)
    return flow
