"""What an image shows where something has been taken out of it."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ...errors import OptionError
from ..case import Case

__all__ = ["FILLS", "filling"]

FILLS = ("black", "mean", "zero", "blur", "noise")


def filling(case: Case, fill: str) -> Float[Tensor, "channels height width"]:
    """The ground of that name, as large as the image and normalised as it is.

    black: 0 before normalisation. zero: 0 after it, the grey of the training data's mean. mean: the image's own mean
    colour. blur: the image under a Gaussian of σ = 5 in a window of 11 × 11 pixels, zero beyond its edges. noise:
    standard normal, from the image's seed.

    Raises:
        OptionError: for another name.
    """
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
        around = torch.nn.functional.pad(image, (5, 5, 5, 5))
        return gaussian_blur(around, [11, 11], [5.0, 5.0])[..., 5:-5, 5:-5]
    raise OptionError(f"fill={fill!r} is unknown; choose one of {', '.join(FILLS)}")
