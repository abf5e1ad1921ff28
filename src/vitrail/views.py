"""Several views of an image, and the mean of their maps over it, with its standard error in each cell.

A view is the image moved by parts of a patch, mirrored, or made larger or smaller. Its map is moved back over the
image, and what the image's border hides in it does not count.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample, pad

from .errors import OptionError

__all__ = ["USUAL", "CellMeans", "Smooth", "Spread", "View", "moved", "moved_back", "views_of"]

Smooth = Literal["shift", "flip", "scale"]

USUAL: dict[Smooth, int] = {"shift": 4, "flip": 2, "scale": 3}  # views, where effort= does not say
WIDEST = 1.2  # the largest scale, and one over the smallest
FINEST = 64  # shifts or scales: more have nothing new to show


@dataclass(frozen=True, eq=False)
class Spread:
    """Tells how steady a mean over views of the image is.

    `error` is the standard error of each score, infinite in cells that only one view shows. `answers` are the target's
    logits in the views, less those of the class that it is held against; the image as it is comes first.
    """

    error: Float[Tensor, "*questions rows cols"]
    answers: Float[Tensor, "*questions views"]

    def __getitem__(self, images: slice) -> "Spread":
        """Returns the spread of some of the images."""
        return Spread(self.error[images], self.answers[images])


@dataclass(frozen=True)
class View:
    """How an image is shown: moved down and right by pixels, mirrored, and larger or smaller about its centre."""

    down: int = 0
    right: int = 0
    mirrored: bool = False
    scale: float = 1.0

    def record(self) -> dict[str, Any]:
        """Returns what differs from the image as it is, as plain JSON values."""
        return {name: of for name, of in vars(self).items() if of != getattr(View, name)}


def views_of(smooth: Smooth, effort: int, patch: tuple[int, int]) -> list[View]:
    """Returns that many views, the image as it is first.

    Shifts are spread over a patch, so that those of any number are about as far from each other as can be, and go both
    ways, so that no border is hidden in all of them.

    Raises:
        OptionError: for more views than there are different ones.

    Example:
        >>> [(view.down, view.right) for view in views_of("shift", 4, (16, 16))]
        [(0, 0), (8, 8), (-8, 0), (0, 8)]
    """
    most = {"shift": min(FINEST, patch[0] * patch[1]), "flip": 2, "scale": FINEST}[smooth]
    if not isinstance(effort, int) or not 1 <= effort <= most:
        raise OptionError(f'effort={effort!r}, but smooth="{smooth}" has 1 to {most} different views')
    if smooth == "flip":
        return [View(), View(mirrored=True)][:effort]
    if smooth == "scale":
        half = ceil((effort - 1) / 2)
        powers = [sign * step / half for step in range(1, half + 1) for sign in (1, -1)]
        return [View(), *(View(scale=WIDEST**power) for power in powers)][:effort]
    found: dict[tuple[int, ...], View] = {}
    number = 0
    while len(found) < effort:
        at = tuple(int(part * side) for part, side in zip(_spread_out(number), patch, strict=True))
        back = number % 2 == 0  # every other one goes up or left, by the rest of a patch
        down, right = (place - side if place and back else place for place, side in zip(at, patch, strict=True))
        found.setdefault(at, View(down, right))
        number += 1
    return list(found.values())


def _spread_out(number: int) -> tuple[float, float]:
    """A place in the unit square, by the bits of a number, two for each halving: first all halves, then quarters, …"""
    down = right = 0.0
    step = 0.5
    while number:
        down += step * (number & 3 in (1, 2))
        right += step * (number & 3 in (1, 3))
        number >>= 2
        step /= 2
    return down, right


def moved(images: Float[Tensor, "images channels height width"], view: View) -> Tensor:
    """Returns the images as the view shows them; what comes in at the border is the image reflected there."""
    if view.mirrored:
        images = images.flip(-1)
    if view.scale != 1:
        grid = _scaling(images, view.scale)
        images = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if not view.down and not view.right:
        return images
    high, wide = images.shape[-2:]
    down, right = abs(view.down), abs(view.right)
    larger = pad(images, (right, right, down, down), mode="reflect")
    return larger[..., down - view.down :, right - view.right :][..., :high, :wide].contiguous()


def moved_back(
    maps: Float[Tensor, "images questions height width"], view: View
) -> tuple[Float[Tensor, "images questions height width"], Float[Tensor, "1 1 height width"]]:
    """Returns a view's maps over the image, zero where the view hides it, and 1 where it does not.

    Example:
        >>> moved_back(torch.tensor([[[[1.0, 2.0, 3.0]]]]), View(right=1))
        (tensor([[[[2., 3., 0.]]]]), tensor([[[[1., 1., 0.]]]]))
    """
    seen = torch.ones_like(maps[:1, :1])
    if view.down or view.right:
        maps, seen = (_slid(part, -view.down, -view.right) for part in (maps, seen))
    if view.scale != 1:
        grid = _scaling(maps, 1 / view.scale)
        maps, seen = (
            grid_sample(part, grid[: len(part)], mode="nearest", align_corners=False) for part in (maps, seen)
        )
    return (maps.flip(-1), seen.flip(-1)) if view.mirrored else (maps, seen)


def _slid(maps: Tensor, down: int, right: int) -> Tensor:
    high, wide = maps.shape[-2:]
    larger = pad(maps, (abs(right), abs(right), abs(down), abs(down)))
    return larger[..., abs(down) - down :, abs(right) - right :][..., :high, :wide]


def _scaling(images: Tensor, scale: float) -> Tensor:
    matrix = torch.tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]], dtype=images.dtype, device=images.device)
    return affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)


class CellMeans:
    """Mean and standard error (with `spreads`) of maps, view after view, over an input of (height, width) pixels."""

    def __init__(self, size: tuple[int, int], *, spreads: bool = True) -> None:
        self.size, self.spreads = size, spreads
        self.weight = self.squared_weight = self.total = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, maps: Float[Tensor, "images questions rows cols"], view: View) -> None:
        """Adds the maps of a view."""
        grid = (maps.shape[-2], maps.shape[-1])
        high, wide = (whole // part for whole, part in zip(self.size, grid, strict=True))
        pixels = maps.double().repeat_interleave(high, dim=-2).repeat_interleave(wide, dim=-1)
        back, seen = (adaptive_avg_pool2d(part, grid) for part in moved_back(pixels, view))
        self.weight = self.weight + seen  # the part of each cell that the view shows
        self.squared_weight = self.squared_weight + seen**2
        self.total = self.total + back
        if self.spreads:
            self.squares = self.squares + torch.where(seen > 0, back**2 / seen.clamp(min=1e-12), 0.0)

    def mean(self) -> Float[Tensor, "images questions rows cols"]:
        """Returns Σ w m / Σ w, w the part of a cell that a view shows and m its score there."""
        return self.total / self.weight

    def error(self) -> Float[Tensor, "images questions rows cols"]:
        """Returns the mean's standard error, s / √n for n views that show all of a cell; infinite for a single one."""
        variance = (self.squares / self.weight - self.mean() ** 2).clamp(min=0)
        share = self.squared_weight / self.weight**2  # 1 / n
        # Between weights that are not equal, n − 1 is Σw − Σw² / Σw.
        return torch.where(share < 1, variance * share / (1 - share).clamp(min=1e-12), torch.inf).sqrt()
