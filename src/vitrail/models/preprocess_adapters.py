"""Reading other libraries' preprocessing: timm's and open_clip's configs, torchvision's transforms, HF's processors."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ModelError
from .preprocess import Preprocess
from .transforms import REMEDY, learn, misread, run_processor

__all__ = [
    "adapt",
    "from_open_clip",
    "from_processor",
    "from_timm",
    "from_torchvision",
    "read_processor",
]

# Steps that change the type of the pixels and not their values; the probe pictures show whether they do.
_NEUTRAL = (
    *("ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor", "ConvertImageDtype", "MaybeConvertMode"),
    *("ToImage", "ToDtype", "ToPureTensor", "RGB"),
)


def adapt(preprocess: Any) -> Preprocess:
    """A `Preprocess` that does what the given object does, to 1e-6.

    Takes a `Preprocess`; a function from a picture (PIL image, tensor or array) to the model's input, such as the
    transforms of torchvision, timm, open_clip and Albumentations; a Hugging Face image processor; or the data config of
    timm or open_clip. What is read from a function's steps is tried on probe pictures, and where it differs the
    function itself is used; see `vitrail.models.transforms`.

    Raises:
        ModelError: for anything else, and for what is random, or mirrors, turns or warps the picture.

    Example:
        >>> from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
        >>> adapt(Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])).resize
        256
    """
    if isinstance(preprocess, Preprocess):
        return preprocess
    if isinstance(preprocess, Mapping):
        try:
            return from_open_clip(preprocess) if "resize_mode" in preprocess else from_timm(preprocess)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"preprocess= is no data config of timm or open_clip ({error!r} is wrong); {REMEDY}"
            ) from error
    if hasattr(getattr(preprocess, "image_processor", preprocess), "image_mean"):  # also one of images and texts
        return learn(partial(run_processor, preprocess))
    if not callable(preprocess):
        raise ModelError(f"preprocess= is a {type(preprocess).__name__}, which cannot be read; {REMEDY}")
    try:
        read = from_torchvision(preprocess) if hasattr(preprocess, "crop_size") else _from_steps(_flat(preprocess))
    except Exception:  # whatever its steps are, the function itself can be used
        read = None
    return learn(preprocess, read)


def from_timm(config: Mapping[str, Any]) -> Preprocess:
    """What timm's evaluation transform does with this data config (`timm.data.resolve_data_config`)."""
    rows, cols = config["input_size"][-2:]
    box = math.floor(rows / config["crop_pct"]), math.floor(cols / config["crop_pct"])
    mode, mean = config["crop_mode"], _triple(config["mean"])
    ground = (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    return Preprocess(
        size=(rows, cols),
        resize=box[0] if mode == "center" and box[0] == box[1] else box,
        interpolation=config["interpolation"],
        mean=mean,
        std=_triple(config["std"]),
        crop_mode=mode,
        fill=ground if mode == "border" else (0, 0, 0),
    )


def from_open_clip(config: Mapping[str, Any]) -> Preprocess:
    """What open_clip's evaluation transform does with a visual tower's `preprocess_cfg`."""
    size, mode = _pair(config["size"]), config["resize_mode"]
    return Preprocess(
        size=size,
        resize=size[0] if mode == "shortest" and size[0] == size[1] else size,
        interpolation=config["interpolation"],
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
        crop_mode="center" if mode == "shortest" else "border" if mode == "longest" else "squash",
        fill=(config["fill_color"],) * 3,
    )


def from_torchvision(preset: Any) -> Preprocess:
    """What torchvision's `weights.transforms()` does."""
    resize = _box(preset.resize_size)
    return Preprocess(
        size=_pair(preset.crop_size),
        resize=resize,
        interpolation=preset.interpolation.value,
        mean=_triple(preset.mean),
        std=_triple(preset.std),
        crop_mode="center" if isinstance(resize, int) else "squash",
    )


def from_processor(processor: Any) -> Preprocess | None:
    """What a Hugging Face image processor does; None where its output has no fixed size.

    Processors resize 8-bit tensors and Vitrail 8-bit pictures, both with antialiasing: a pixel may differ by a level or
    two of 255. Where an odd number of pixels is cropped away, they begin half a pixel earlier and Vitrail half later.
    """
    size, crop = _lengths(processor.size), _lengths(getattr(processor, "crop_size", None))
    cropped = (crop["height"], crop["width"]) if getattr(processor, "do_center_crop", False) and crop else None
    if "height" in size:
        box = (size["height"], size["width"])
        shape, resize = (cropped, box) if cropped is not None else (box, None)
    elif "shortest_edge" in size:
        side = size["shortest_edge"]
        shape, resize = cropped or (side, side), int(side / (getattr(processor, "crop_pct", None) or 1))
    else:
        return None
    normalised = getattr(processor, "do_normalize", True)
    mean = _triple(processor.image_mean) if normalised else (0.0, 0.0, 0.0)
    std = _triple(processor.image_std) if normalised else (1.0, 1.0, 1.0)
    scale = 255 * processor.rescale_factor if getattr(processor, "do_rescale", True) else 255.0
    if abs(scale - 1) > 1e-6:  # pixels brought to another range than 0…1 before mean and std
        mean, std = _triple([value / scale for value in mean]), _triple([value / scale for value in std])
    interpolation: Any = Image.Resampling(int(processor.resample)).name.lower()
    return Preprocess(
        size=shape,
        resize=resize if getattr(processor, "do_resize", True) else None,
        interpolation=interpolation,
        mean=mean,
        std=std,
        crop_mode="squash" if "height" in size else "center",
    )


def read_processor(processor: Any) -> Preprocess | None:
    """`from_processor` where its pictures are the processor's but for the resizing, else the processor itself.

    None where the output has no fixed size. Raises `ModelError` for a processor that gives no pictures of one size.
    """
    try:
        read = from_processor(processor)
    except Exception:  # attributes that other processors do not have
        read = None
    else:
        if read is None:
            return None
    function = partial(run_processor, processor)
    return read if read is not None and not misread(read, function) else learn(function)


def _flat(transform: Any) -> list[Any]:
    """The steps of a transform, those of nested ones among them."""
    steps = getattr(transform, "transforms", None)
    if steps is None:
        return [transform]
    return [step for part in steps for step in _flat(part)]


def _from_steps(steps: Sequence[Any]) -> Preprocess | None:
    """Resizing, an optional centre crop and normalisation, in that order; None for others."""
    size = resize = None
    interpolation, mode = "bilinear", "center"
    fill: tuple[int, int, int] = (0, 0, 0)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for step in steps:
        kind = type(step).__name__
        if kind in ("Resize", "ResizeKeepRatio") and size is None and resize is None:
            resize, interpolation = _box(step.size), getattr(step.interpolation, "value", step.interpolation)
            if kind == "Resize":
                mode = "center" if isinstance(resize, int) else "squash"
            else:
                mode = "border" if step.longest == 1 else "center"
        elif kind in ("CenterCrop", "CenterCropOrPad") and size is None:
            size = _pair(step.size)
            ground = getattr(step, "fill", 0)
            fill = (ground, ground, ground) if isinstance(ground, int) else (ground[0], ground[1], ground[2])
        elif kind == "Normalize":
            mean, std = _triple(step.mean), _triple(step.std)
        elif kind not in _NEUTRAL and getattr(step, "__name__", "") != "_convert_to_rgb":  # open_clip's function
            return None
    if size is None and isinstance(resize, tuple):
        size = resize
    if size is None or resize is None:
        return None
    checked: Any = {"interpolation": interpolation, "crop_mode": mode}
    return Preprocess(
        size, None if mode == "squash" and resize == size else resize, mean=mean, std=std, fill=fill, **checked
    )


def _triple(values: Any) -> tuple[float, float, float]:
    """Three numbers, of which a single one stands for all."""
    numbers = [float(value) for value in np.atleast_1d(values)]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _box(size: Any) -> int | tuple[int, int]:
    """torchvision's size of a resizing: one number (or a list of one) for the shorter side, or (height, width)."""
    if isinstance(size, int):
        return size
    return int(size[0]) if len(size) == 1 else (int(size[0]), int(size[1]))


def _pair(size: Any) -> tuple[int, int]:
    """The (height, width) of a size given as one number, a list of one, or both."""
    box = _box(size)
    return (box, box) if isinstance(box, int) else box


def _lengths(size: Any) -> dict[str, int]:
    """The lengths that a processor's size names; a dict in some versions of transformers and an object in others."""
    if isinstance(size, int):
        return {"shortest_edge": size}
    found = {}
    for key in ("height", "width", "shortest_edge"):
        value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
        if value is not None:
            found[key] = value
    return found
