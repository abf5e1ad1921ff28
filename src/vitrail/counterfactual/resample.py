"""The model's view of a photograph as a linear map of its pixels, so that a gradient finds the way back to them.

Pillow resizes bytes: every output pixel is a weighted mean of input pixels, along the columns and then along the rows,
rounded after each. Without the rounding that is `rows @ pixels @ cols.T`, with the weights that Pillow itself computes
(`precompute_coeffs` in its Resample.c); the crop picks lines of these matrices, and padding adds lines of zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.preprocess import Preprocess

__all__ = ["LinearView", "linear_view", "resize_weights"]


def resize_weights(length: int, new_length: int, interpolation: str) -> Float[Tensor, "new_length length"]:
    """Returns the weights with which Pillow makes `new_length` pixels out of `length`, in float64; each row sums to
    one.

    `interpolation` is "bilinear", "bicubic" (a = -1/2), "lanczos" (three lobes), all widened when shrinking, or
    "nearest".

    Example:
        >>> resize_weights(4, 2, "bilinear")
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]], dtype=torch.float64)
    """
    scale = length / new_length
    centres = (np.arange(new_length) + 0.5) * scale
    if interpolation == "nearest":
        # Pillow adds up the steps one by one, and where a centre lies between two pixels its last digit decides.
        centres = np.cumsum(np.append(scale / 2, np.full(new_length - 1, scale)))
        weights = torch.zeros(new_length, length, dtype=torch.float64)
        weights[torch.arange(new_length), torch.from_numpy(centres.astype(np.int64))] = 1.0
        return weights
    if length == new_length:  # Pillow copies; the weights would be the same but for rounding
        return torch.eye(length, dtype=torch.float64)
    kernel, reach = _KERNELS[interpolation]
    stretch = max(scale, 1.0)  # antialiasing: when shrinking, the kernel spans `reach` pixels of the small picture
    first = np.maximum((centres - reach * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach * stretch + 0.5).astype(np.int64), length)
    place = np.arange(length)
    weights = kernel((place + 0.5 - centres[:, None]) / stretch)
    weights *= (place >= first[:, None]) & (place < last[:, None])
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))


def _bilinear(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.maximum(1 - np.abs(x), 0.0)


def _bicubic(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS: dict[str, tuple[Callable, int]] = {
    "bilinear": (_bilinear, 1),
    "bicubic": (_bicubic, 2),
    "lanczos": (_lanczos, 3),
}


@dataclass(frozen=True, eq=False)
class LinearView:
    """Resize, crop and pad as two matrices: what the model sees of channel X is `rows @ X @ cols.T`, plus `ground`.

    `ground` is what stands where the picture does not reach, from 0 to 1.
    """

    rows: Float[Tensor, "view_height height"]
    cols: Float[Tensor, "view_width width"]
    ground: Float[Tensor, "3 view_height view_width"]

    def __call__(self, pixels: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 view_height view_width"]:
        """Returns the model's view before normalisation and without rounding: pixels from 0 to 1 (a little beyond)."""
        return self.rows @ pixels @ self.cols.mT + self.ground

    def back(self, gradient: Float[Tensor, "3 view_height view_width"]) -> Float[Tensor, "3 height width"]:
        """Returns the gradient by the photograph's pixels, given that by the pixels of the view: `rows.T @ G @
        cols`.
        """
        return self.rows.mT @ gradient @ self.cols


def linear_view(
    preprocess: Preprocess, height: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> LinearView:
    """Returns the linear map that `preprocess.view` rounds, for photographs of that height and width in pixels.

    Example:
        >>> view = linear_view(Preprocess(size=(224, 224), resize=256), 480, 640)
        >>> view(torch.full((3, 480, 640), 0.5)).mean()
        tensor(0.5000)
    """
    resized = preprocess.resized(height, width)
    rows = _cropped(resize_weights(height, resized[0], preprocess.interpolation), preprocess.size[0])
    cols = _cropped(resize_weights(width, resized[1], preprocess.interpolation), preprocess.size[1])
    outside = 1 - rows.sum(dim=1)[:, None] * cols.sum(dim=1)
    fill = torch.tensor(preprocess.fill, dtype=torch.float64).view(3, 1, 1) / 255
    return LinearView(*(part.to(device, dtype) for part in (rows, cols, fill * outside)))


def _cropped(weights: Float[Tensor, "resized length"], size: int) -> Float[Tensor, "size length"]:
    """Returns the lines in the middle, `size` of them; zeros around them where there are too few."""
    missing = size - len(weights)
    if missing > 0:
        above = missing // 2
        blank = weights.new_zeros
        return torch.cat([blank(above, weights.shape[1]), weights, blank(missing - above, weights.shape[1])])
    first = round(-missing / 2)  # halves to the even number, as torchvision does it
    return weights[first : first + size]
