"""Two pictures in one input, and the way back from its map to the original's own patches.

    side    original │ guide, each squeezed into half of the input's width
    stack   original over guide, each squeezed into half of its height
    wide    original │ guide, each as large as the model's own input: the input is twice as wide
    tall    original over guide, each as large as the model's own input: the input is twice as high

`side` and `stack` are the seed paper's external guidance; `wide` and `tall` are Vitrail's extension and need a model
that takes a larger input. Both halves are whole patches and equally large. Where their number is odd, the patches in
the middle belong to neither and show the model's mean colour. `widened` gives the model at the larger input without
touching it.
"""

import copy
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputSizeError, LayoutError, OptionError, silenced
from ..models.layout import TokenLayout, layout_of
from ..models.loading import defined_in
from ..models.vision_model import VisionModel
from ..provenance import Box, Stitch

__all__ = ["FITS", "LAYOUTS", "crop_map", "fit_picture", "plan_stitch", "stitch", "to_grid", "widened"]

# The sides on which the original can lie, the usual one first.
LAYOUTS: dict[str, tuple[str, str]] = {
    "side": ("left", "right"),
    "stack": ("top", "bottom"),
    "wide": ("left", "right"),
    "tall": ("top", "bottom"),
}
FITS = ("squash", "crop", "pad")


def plan_stitch(
    layout: str, side: str, fit: str, *, grid: tuple[int, int], patch: tuple[int, int] = (16, 16)
) -> Stitch:
    """Returns the places of the two images, for a model whose own input is `grid` patches of `patch` pixels.

    Args:
        layout: "side", "stack", "wide" or "tall".
        side: where the original lies: "left" or "right", for stack and tall "top" or "bottom".
        fit: "squash" (the whole picture, out of shape), "crop" (its middle, in shape), "pad" (the whole picture in
            shape, as near as whole patches allow, on the model's mean colour). Wide and tall have room for all of it.
        grid: rows and columns of patches of the model's own input.
        patch: height and width of a patch in pixels.

    Raises:
        OptionError: for any other word.
        LayoutError: when the grid is too small to be halved.

    Example:
        >>> half = plan_stitch("side", "left", "squash", grid=(14, 14))
        >>> half.original, half.guide.left
        (Box(top=0, left=0, rows=14, cols=7), 7)
    """
    check_words(layout, side, fit)
    (rows, cols), first = grid, side == LAYOUTS[layout][0]
    if layout in ("wide", "tall"):
        half = grid
        whole = (rows, 2 * cols) if layout == "wide" else (2 * rows, cols)
        fit = "squash"  # which here is no change at all
    else:
        half = (rows, cols // 2) if layout == "side" else (rows // 2, cols)
        whole = grid
    if min(half) < 1:
        raise LayoutError(f"a grid of {rows}×{cols} patches cannot be halved for layout={layout!r}")
    far = (whole[0] - half[0], 0) if layout in ("stack", "tall") else (0, whole[1] - half[1])
    near_box, far_box = Box(0, 0, *half), Box(*far, *half)
    original, guide = (near_box, far_box) if first else (far_box, near_box)
    shown = original
    if fit == "pad":
        inside = _padded(half, grid)
        shown = Box(original.top + inside.top, original.left + inside.left, inside.rows, inside.cols)
    return Stitch(layout, side, fit, whole, original, guide, shown, patch)


def check_words(layout: str, side: str, fit: str) -> None:
    """Refuses a layout, side or fit that is not known, naming those that are. Raises `OptionError`."""
    if layout not in LAYOUTS:
        raise OptionError(f"layout={layout!r} of a guide is not known; choose one of {', '.join(LAYOUTS)}")
    if side not in LAYOUTS[layout]:
        raise OptionError(
            f"side={side!r} is no place for the original in layout={layout!r}; choose {' or '.join(LAYOUTS[layout])}"
        )
    if fit not in FITS:
        raise OptionError(f"fit={fit!r} of a guide is not known; choose one of {', '.join(FITS)}")


def fit_picture(
    pictures: Float[Tensor, "batch channels height width"], half: tuple[int, int], fit: str, patch: tuple[int, int]
) -> Float[Tensor, "batch channels high wide"]:
    """Resizes normalised images to a half of `half` = (rows, columns) patches.

    Resampled by antialiased bicubic interpolation, and never beyond a picture's own darkest and brightest values. What
    padding leaves free is 0, the mean colour of normalised pictures.

    Example:
        >>> fit_picture(torch.rand(1, 3, 32, 32), (2, 1), "crop", (16, 16)).shape
        torch.Size([1, 3, 32, 16])
    """
    height, width = pictures.shape[-2:]
    high, wide = half[0] * patch[0], half[1] * patch[1]
    if fit == "squash":
        return _resample(pictures, (high, wide))
    if fit == "crop":
        scale = max(high / height, wide / width)
        larger = _resample(pictures, (max(high, round(height * scale)), max(wide, round(width * scale))))
        top, left = (larger.shape[-2] - high) // 2, (larger.shape[-1] - wide) // 2
        return larger[..., top : top + high, left : left + wide]
    inside = _padded(half, (height / patch[0], width / patch[1]))
    padded = pictures.new_zeros((*pictures.shape[:2], high, wide))
    rows, cols = inside.slices(patch)
    padded[..., rows, cols] = _resample(pictures, (inside.rows * patch[0], inside.cols * patch[1]))
    return padded


def stitch(
    originals: Float[Tensor, "batch channels height width"],
    guides: Float[Tensor, "batch channels high wide"],
    plan: Stitch,
) -> Float[Tensor, "batch channels tall broad"]:
    """Originals and guides, one each, as one normalised input; what belongs to neither is 0, the mean colour.

    The pictures are fitted after normalisation. Both steps are linear, so this is what fitting and stitching before
    normalisation gives, up to the rounding of pixels.

    Example:
        >>> plan = plan_stitch("wide", "right", "squash", grid=(2, 2))
        >>> photo, guide = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
        >>> torch.equal(stitch(photo, guide, plan)[..., 32:], photo)
        True
    """
    whole = originals.new_zeros((*originals.shape[:2], *plan.size))
    for pictures, box in ((originals, plan.original), (guides, plan.guide)):
        rows, cols = box.slices(plan.patch)
        whole[..., rows, cols] = fit_picture(pictures, (box.rows, box.cols), plan.fit, plan.patch).to(whole)
    return whole


def crop_map(
    scores: Float[Tensor, "*batch rows cols"], plan: Stitch, part: str = "original"
) -> Float[Tensor, "*batch some_rows some_cols"]:
    """Returns the patches of a stitched map that show the original (padding left out); `part="guide"`: the guide's
    half.

    Raises:
        LayoutError: when the map is not of the stitched input's grid.
    """
    if tuple(scores.shape[-2:]) != plan.grid:
        raise LayoutError(f"a map of {tuple(scores.shape[-2:])} patches is not that of a stitch of {plan.grid}")
    rows, cols = (plan.shown if part == "original" else plan.guide).slices()
    return scores[..., rows, cols]


def to_grid(
    scores: Float[Tensor, "*batch rows cols"], grid: tuple[int, int]
) -> Float[Tensor, "*batch fine_rows fine_cols"]:
    """Returns a map whose patches are not the model's own, brought to the grid of those.

    A patch of a squashed half covers several of the model's own, wholly or in part; each of these gets the mean of what
    covers it, weighted by area.

    Example:
        >>> to_grid(torch.tensor([[5.0]]), (1, 2))
        tensor([[5., 5.]])
    """
    rows, cols = _shares(scores.shape[-2], grid[0], scores), _shares(scores.shape[-1], grid[1], scores)
    return rows @ scores @ cols.mT


def _shares(coarse: int, fine: int, like: Tensor) -> Float[Tensor, "fine coarse"]:
    """How much of each of `fine` equal pieces of a line lies in each of `coarse` equal pieces."""
    ends = torch.arange(fine + 1, dtype=torch.float64) / fine
    others = torch.arange(coarse + 1, dtype=torch.float64) / coarse
    overlap = torch.minimum(ends[1:, None], others[None, 1:]) - torch.maximum(ends[:-1, None], others[None, :-1])
    return (overlap.clamp(min=0) * fine).to(like)


def _padded(half: tuple[int, int], picture: tuple[float | int, float | int]) -> Box:
    """The largest box of whole patches in the middle of a half that keeps the picture's shape, nearly."""
    scale = min(half[0] / picture[0], half[1] / picture[1])
    rows, cols = (min(most, max(1, round(length * scale))) for most, length in zip(half, picture, strict=True))
    return Box((half[0] - rows) // 2, (half[1] - cols) // 2, rows, cols)


def _resample(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    wide = pictures if pictures.dtype == torch.float64 else pictures.float()
    lowest, highest = wide.amin(dim=(-2, -1), keepdim=True), wide.amax(dim=(-2, -1), keepdim=True)
    resized = interpolate(wide, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(min=lowest, max=highest).to(pictures.dtype)


def widened(
    model: VisionModel, size: tuple[int, int], grid: tuple[int, int], channels: int = 3
) -> tuple[VisionModel, str]:
    """Returns a model for inputs of `size` = (height, width) pixels with `grid` patches, and how it came to take them.

    Hugging Face's models are asked to interpolate their position embeddings; modules that take the larger input as it
    is are used as they are; those of timm are built anew around the same weights, with resampled position embeddings.
    The module that was given stays bit for bit as it was.

    Raises:
        InputSizeError: when none of these gives the grid; the message says which layouts work.
    """
    ways = (_interpolating, _as_it_is, _resized)
    reasons = []
    for way in ways:
        try:
            larger = way(model, size)
            if larger is None:
                continue
            layout = _layout(larger, size, channels)
        except Exception as error:  # whatever a module raises for an input of a size that it does not take
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
            continue
        if (layout.rows, layout.cols) == grid:
            return larger, WORDS[way.__name__]
        reasons.append(f"its patches would be {layout.rows}×{layout.cols}")
    raise InputSizeError(
        f"{model.name} takes no input of {size[0]}×{size[1]} pixels, as the layouts wide and tall need "
        f'({reasons[-1] if reasons else "unknown"}); layout="side" and layout="stack" work with every model'
    )


def _interpolating(model: VisionModel, size: tuple[int, int]) -> VisionModel | None:
    del size
    if "interpolate_pos_encoding" not in signature(model.module.forward).parameters:
        return None
    options = {**model.forward_options, "interpolate_pos_encoding": True}
    return replace(model, forward_options=options, grid=None)


def _as_it_is(model: VisionModel, size: tuple[int, int]) -> VisionModel | None:
    del size
    return replace(model, grid=None)


def _resized(model: VisionModel, size: tuple[int, int]) -> VisionModel | None:
    if not (defined_in(model.module, "timm") and hasattr(model.module, "set_input_size")):
        return None
    # The copy has modules of its own but the same weights: whatever is resampled is made anew, not written over.
    same: dict[int, Any] = {id(p): p for p in (*model.module.parameters(), *model.module.buffers())}
    module: Any = copy.deepcopy(model.module, same)
    # What PyTorch has to say of timm's interpolation is no matter of the user's.
    with torch.no_grad(), silenced():
        module.set_input_size(img_size=size)
    return replace(model, module=module, grid=None)


WORDS = {
    "_interpolating": "position embeddings interpolated by the model",
    "_as_it_is": "as the model takes it",
    "_resized": "position embeddings resampled by timm, on a copy of the model",
}


def _layout(model: VisionModel, size: tuple[int, int], channels: int) -> TokenLayout:
    return layout_of(model, torch.zeros(1, channels, *size, device=model.device, dtype=model.dtype), follow=True)
