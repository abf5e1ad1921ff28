"""What an image shows where something has been taken out of it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from ...errors import OptionError
from ..case import Case

__all__ = ["FILLS", "blurred", "check_fill", "filling", "folded_gaussian"]

FILLS = ("black", "mean", "zero", "blur", "noise", "lowest", "highest")


def check_fill(fill: str, option: str = "fill") -> None:
    """Refuse a name that is not known. Raises `OptionError`."""
    if fill not in FILLS:
        raise OptionError(f"{option}={fill!r} is unknown; choose one of {', '.join(FILLS)}")


def filling(case: Case, fill: str) -> Float[Tensor, "channels height width"]:
    """The ground of that name, as large as the image and normalised as it is.

    black: 0 before normalisation. zero: 0 after it, the grey of the training data's mean. mean: the image's own mean
    colour. blur: the image under the Gaussian of RISE (`blurred`). noise: standard normal, from the image's seed.
    lowest, highest: the image's own extreme value over all channels, which Quantus calls black and white.

    Raises:
        OptionError: for another name.
    """
    check_fill(fill)
    image = case.image
    if fill == "black":
        return torch.tensor(case.black, dtype=image.dtype, device=image.device)[:, None, None].expand_as(image)
    if fill == "zero":
        return torch.zeros_like(image)
    if fill == "mean":
        return image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    if fill == "noise":
        return torch.randn(image.shape, generator=case.generator(), dtype=torch.float32).to(image)
    if fill == "blur":
        return blurred(image)
    return (image.amin() if fill == "lowest" else image.amax()).expand_as(image)


def folded_gaussian(length: int = 11, sigma: float = 5.0) -> Float[Tensor, " length"]:
    """A Gaussian in a window too narrow for it, with what lies beyond mirrored back in at the edges, in float64.

    This is what `scipy.ndimage.gaussian_filter` makes of a single one amid zeros, out to four σ: for 11 and 5 the
    window of RISE (Petsiuk, Das, Saenko 2018), which is much flatter than a Gaussian cut off.

    Example:
        >>> [round(value, 4) for value in folded_gaussian(3, 1.0).tolist()]
        [0.2961, 0.4078, 0.2961]
    """
    reach = int(4 * sigma + 0.5)
    heights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)]
    weights = torch.tensor(heights, dtype=torch.float64)
    window = torch.zeros(length, dtype=torch.float64)
    for step, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        place = (length // 2 + step) % (2 * length)
        window[min(place, 2 * length - 1 - place)] += weight
    return window


def blurred(image: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
    """The image under RISE's window of 11 × 11 pixels, zero beyond its edges."""
    wide = image if image.dtype == torch.float64 else image.float()
    window = folded_gaussian().to(wide)
    half = len(window) // 2
    rows = conv2d(wide[:, None], window.view(1, 1, -1, 1), padding=(half, 0))
    return conv2d(rows, window.view(1, 1, 1, -1), padding=(0, half))[:, 0].to(image.dtype)
