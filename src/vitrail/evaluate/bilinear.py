"""A map on the pixels of its image."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["bilinear"]


def bilinear(scores: Float[Tensor, "*batch rows cols"], size: tuple[int, int]) -> Float[Tensor, "*batch high wide"]:
    """The raw map enlarged bilinearly, corners not aligned, so that each patch keeps its place; signs stay.

    Example:
        >>> import torch
        >>> bilinear(torch.tensor([[-1.0, 3.0]]), (1, 4)).tolist()
        [[-1.0, 0.0, 2.0, 3.0]]
    """
    flat = scores.reshape(-1, 1, *scores.shape[-2:])
    large = interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return large.reshape(*scores.shape[:-2], *size)
