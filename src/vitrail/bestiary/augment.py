"""Cheap variety on tensors: what makes one drawn scene worth many in training."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn import functional


def augmented(
    images: UInt8[Tensor, "batch 3 size size"], owners: UInt8[Tensor, "batch size size"], generator: Generator
) -> tuple[Float[Tensor, "batch 3 size size"], Int[Tensor, "batch size size"]]:
    """Normalised images under random flips, small motions and colour changes, and the owner of each pixel moved along.

    >>> image = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    >>> augmented(image, image[:, 0], torch.Generator().manual_seed(0))[0].shape
    torch.Size([1, 3, 96, 96])
    """
    batch = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(batch, *shape).uniform_(low, high, generator=generator)

    angle, scale = uniform(-0.15, 0.15), uniform(0.9, 1.15)
    flip = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = uniform(-0.06, 0.06, 2)
    theta = torch.stack(
        [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(theta, [batch, 1, *images.shape[2:]], align_corners=False)
    moved = functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    # Owners come from outside the picture nowhere: there the border is nobody's.
    owned = functional.grid_sample(
        owners[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return normalised(recoloured(moved, generator)), owned[:, 0].long()


def recoloured(images: Float[Tensor, "batch 3 size size"], generator: Generator) -> Float[Tensor, "batch 3 size size"]:
    """Each image through its own random mixing of the colour channels: hues turn, saturation and brightness change."""
    batch = len(images)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(batch)])
    mixing = torch.eye(3)[order] + torch.empty(batch, 3, 3).uniform_(-0.12, 0.12, generator=generator)
    mixing = mixing / mixing.sum(dim=2, keepdim=True)
    mixing = mixing * torch.empty(batch, 1, 1).uniform_(0.8, 1.15, generator=generator)
    return (mixing @ images.flatten(2)).clamp(0, 255).view_as(images)


def normalised(images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
    """Bytes as floats to the model's input: mean 0.5 and deviation 0.5 in each channel."""
    return images / 127.5 - 1
