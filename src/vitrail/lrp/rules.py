"""The rules of Chefer, Gur, Wolf (CVPR 2021) by which an operation shares its relevance R out over its inputs.

Two sets of rules go by that work, and they differ in two places. "tattr" is the authors' own method: a linear layer
conserves relevance, and a residual sum is rescaled so that it does. "original" is the LRP that they compare with: a
linear layer gives the whole of R to its positive and again to its negative part, so that relevance can double at every
layer, and a residual sum is not rescaled, so that it can explode.

All functions take relevance and give relevance; `divide` is R / Z, guarded near zero.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .operations import Divide

__all__ = [
    "convolution_separate",
    "linear_separate",
    "linear_z_plus",
    "pixels_z_box",
    "rescale",
    "shares_of_sum",
]

Convolution: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def linear_z_plus(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    signed: Float[Tensor, "rows outputs"],
    relevance: Float[Tensor, "rows outputs"],
    divide: Divide,
) -> Float[Tensor, "rows inputs"]:
    """R_x = x⁺ ⊙ (S W⁺) + x⁻ ⊙ (S W⁻) with S = R / Z and Z = x⁺ W⁺ᵀ + x⁻ W⁻ᵀ: conserves ΣR (the z⁺ rule, α = 1, β = 0).

    `signed` is x Wᵀ, which the forward pass has computed. As x⁺ W⁺ᵀ + x⁻ W⁻ᵀ = (x Wᵀ + |x| |W|ᵀ) / 2, and likewise on
    the way back, three matrix products do instead of four.
    """
    magnitude = weight.abs()
    total = torch.addmm(signed, x.abs(), magnitude.T).mul_(0.5)
    share = divide(relevance, total)
    return (x * (share @ weight)).addcmul_(x.abs(), share @ magnitude).mul_(0.5)


def linear_separate(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    relevance: Float[Tensor, "rows outputs"],
    divide: Divide,
) -> Float[Tensor, "rows inputs"]:
    """R_x = x⁺ ⊙ (R / Z₁ W⁺) + x⁻ ⊙ (R / Z₂ W⁻), Z₁ = x⁺ W⁺ᵀ and Z₂ = x⁻ W⁻ᵀ: each part gets the whole of R."""
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
    """a R / (a + b) and b R / (a + b)."""
    share = divide(relevance, total)
    return left * share, right * share


def rescale(
    left: Float[Tensor, "..."],
    right: Float[Tensor, "..."],
    relevance: Float[Tensor, "..."],
    divide: Divide,
    images: int = 0,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The two shares of a sum, each times a number per image, so that their totals share out ΣR by |Σr_a| : |Σr_b|.

    The sums run over one image; `images` is the dimension that tells the images apart. The authors' code sums over
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
    """The z^B rule at the pixels, bounded by the least and largest value l and h of each image.

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
    """`linear_separate` for a convolution beyond the first, which both sets of rules treat alike."""
    shares = torch.zeros_like(x)
    for part, half in ((x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))):
        shares += part * _back(convolve, part, half, divide(relevance, convolve(part, half)))
    return shares


def _back(convolve: Convolution, x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    """The transposed convolution of `share`: what a gradient at the output would be at the input."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (flow,) = torch.autograd.grad(convolve(leaf, weight), leaf, share)
    return flow
