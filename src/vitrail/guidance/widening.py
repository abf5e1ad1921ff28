"""A model at a larger input than its own, without touching it: for the layouts `wide` and `tall`."""

import copy
from dataclasses import replace
from inspect import signature
from typing import Any

import torch

from ..errors import InputSizeError
from ..models.layout import TokenLayout, layout_of
from ..models.loading import defined_in
from ..models.vision_model import VisionModel
from ..silence import silenced

__all__ = ["widened"]


def widened(
    model: VisionModel, size: tuple[int, int], grid: tuple[int, int], channels: int = 3
) -> tuple[VisionModel, str]:
    """A model for inputs of `size` = (height, width) pixels with `grid` patches, and how it came to take them.

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
    return layout_of(model, torch.zeros(1, channels, *size, device=model.device, dtype=model.dtype))
