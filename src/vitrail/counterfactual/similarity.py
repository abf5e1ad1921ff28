"""How far two pictures lie apart: in the two norms, in decibels, and in structure."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv2d

__all__ = ["Similarity", "similarity", "ssim"]

_SIGMA, _RADIUS = 1.5, 5  # the window of Wang et al.: 11 pixels
_C1, _C2 = 0.01**2, 0.03**2


class Similarity(NamedTuple):
    """The difference of two pictures with pixels from 0 to 1.

    `linf` is the largest difference (in units of 1/255: `linf * 255` levels), `l2` the root of the sum of squares,
    `psnr` the peak signal-to-noise ratio in dB (infinite for equal pictures), `ssim` the structural similarity (1 for
    equal pictures; NaN for pictures smaller than its window of 11 x 11).
    """

    linf: float
    l2: float
    psnr: float
    ssim: float


def similarity(one: UInt8[np.ndarray, "height width 3"], other: UInt8[np.ndarray, "height width 3"]) -> Similarity:
    """Compare two 8-bit pictures of one size, over all pixels and channels.

    Example:
        >>> black = np.zeros((16, 16, 3), dtype=np.uint8)
        >>> round(similarity(black, black + np.uint8(1)).psnr, 2)
        48.13
    """
    a, b = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1).double() / 255 for x in (one, other))
    change = a - b
    squares = change.square().mean().item()
    return Similarity(
        linf=change.abs().max().item(),
        l2=change.norm().item(),
        psnr=math.inf if squares == 0 else -10 * math.log10(squares),
        ssim=ssim(a, b) if min(a.shape[1:]) > 2 * _RADIUS else math.nan,
    )


def ssim(one: Float[Tensor, "channels height width"], other: Float[Tensor, "channels height width"]) -> float:
    """Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, Eq. 13), for pixels from 0 to 1.

    The mean over channels and over all places where the Gaussian window of σ = 1.5 and 11 x 11 pixels lies inside, of

        (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)).
    """
    ramp = torch.arange(-_RADIUS, _RADIUS + 1, dtype=one.dtype)
    window = torch.exp(-(ramp**2) / (2 * _SIGMA**2))
    window = window / window.sum()

    def mean(x: Tensor) -> Tensor:
        return conv2d(conv2d(x[:, None], window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mu_x, mu_y = mean(one), mean(other)
    var_x, var_y = mean(one**2) - mu_x**2, mean(other**2) - mu_y**2
    covariance = mean(one * other) - mu_x * mu_y
    alike = (2 * mu_x * mu_y + _C1) * (2 * covariance + _C2)
    return (alike / ((mu_x**2 + mu_y**2 + _C1) * (var_x + var_y + _C2))).mean().item()
