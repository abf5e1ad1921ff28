"""Reading other libraries' preprocessing: timm's and open_clip's configs, torchvision's transforms, HF's processors.

What is read from a transform's steps is tried on probe pictures, and where it differs the transform itself is used.
Then the same pictures twice show whether it is random, pictures of one colour show mean and standard deviation, and
ramps of grey show which region is seen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import ImageError, ModelError, silenced
from .preprocess import Preprocess
from .transforms import (
    REMEDY,
    SHADES,
    CallablePreprocess,
    called,
    first_line,
    form_of,
    named,
    random_state_kept,
    run_processor,
    same_twice,
    visible_part,
)

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
# Width and height of the probe pictures: wide, tall, square, very wide, very tall, tiny, large.
_SIZES = ((256, 192), (192, 256), (224, 224), (640, 200), (150, 610), (40, 30), (1100, 800))
_EQUAL = 1e-6  # how far a reading may be off the user's own function
_GROSS = 4.0  # of 255 levels, on average over a smooth picture: more than another way of resizing makes
_LEVEL = 1.6  # of 255: how far a plain colour may be off: a resizing in whole numbers rounds


def adapt(preprocess: Any) -> Preprocess:
    """Returns a `Preprocess` that does what the given object does, to 1e-6.

    Takes a `Preprocess`; a function from a picture (PIL image, tensor or array) to the model's input, such as the
    transforms of torchvision, timm, open_clip and Albumentations; a Hugging Face image processor; or the data config of
    timm or open_clip. What is read from a function's steps is tried on probe pictures, and where it differs the
    function itself is used.

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
    """Returns the preprocessing of timm's evaluation transform for a data config (`timm.data.resolve_data_config`)."""
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
    """Returns the preprocessing of open_clip's evaluation transform for a visual tower's `preprocess_cfg`."""
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
    """Returns the preprocessing of torchvision's `weights.transforms()`."""
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
    """Returns the preprocessing of a Hugging Face image processor; None where its output has no fixed size.

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
    """Returns `from_processor` where its pictures are the processor's but for the resizing, else the processor itself.

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


def learn(function: Callable[..., Any], read: Preprocess | None = None) -> Preprocess:
    """Returns `read` where a user's function does the same to all probe images, else a preprocessing that calls it.

    Raises:
        ModelError: when it takes no pictures, returns no tensor of one size, is random, or turns, mirrors or warps the
            picture, so that a map could not be laid over it.
    """
    with random_state_kept(), silenced(Warning):  # what it warns of is said where it is used
        form = form_of(function, _probes()[0])
        run = partial(called, function, form)
        try:
            found = [same_twice(function, run, image) for image in _probes()]
            shapes = sorted({tuple(one.shape) for one in found})
            if len(shapes) > 1:
                raise ModelError(
                    f"{named(function)} does not fix height and width ({', '.join(map(str, shapes))} among them): add "
                    "CenterCrop, or resize to (height, width)"
                )
            if read is not None and shapes[0] == (read.channels, *read.size):
                ours = (read(image) for image in _probes())
                if all((one - other).abs().max() <= _EQUAL for one, other in zip(ours, found, strict=True)):
                    return read
            preprocess = _colours(function, form, run)
            for image in _probes()[:3]:
                preprocess.region(image.height, image.width)
        except (ModelError, MemoryError):
            raise
        except ImageError as error:
            raise ModelError(f"{error}; {REMEDY}") from error
        except Exception as error:  # the user's function may raise anything
            raise ModelError(f"{named(function)} failed on a probe picture: {first_line(error)}; {REMEDY}") from error
    return preprocess


def misread(preprocess: Preprocess, function: Callable[..., Any]) -> bool:
    """Returns whether the function shows the model other pictures than its reading, and not only resizes a little
    otherwise.

    Raises:
        ModelError: where the function fails.
    """
    form = form_of(function, _probes()[0])
    for image in _probes()[:3]:
        smooth = image.resize((image.width // 8, image.height // 8)).resize(image.size)
        try:
            ours, theirs = preprocess(smooth), called(function, form, smooth)
        except Exception as error:  # the function's own
            raise ModelError(f"{named(function)} failed on a probe picture: {first_line(error)}") from error
        std = torch.tensor(preprocess.std)[:, None, None]
        if ours.shape != theirs.shape or ((ours - theirs).abs() * std).mean() > _GROSS / 255:
            return True
    return False


@lru_cache
def _probes() -> tuple[Image.Image, ...]:
    """Pictures of several sizes with noise, edges, flat places and smooth ones, in colours."""
    found = []
    for width, height in _SIZES:
        generator = np.random.default_rng(width * height)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ramp = np.linspace(0, 255, width).astype(np.uint8)
        pixels[: height // 3] = np.stack([ramp, ramp[::-1], np.roll(ramp, width // 3)], axis=-1)
        pixels[height // 3 : height // 2, : width // 2] = (250, 30, 10)
        pixels[height // 3 : height // 2, width // 2 :: 2] = (0, 90, 255)
        found.append(Image.fromarray(pixels))
    return tuple(found)


def _colours(function: Callable[..., Any], form: str, run: Callable[[Image.Image], Tensor]) -> "CallablePreprocess":
    """Size, mean and standard deviation, from pictures of one colour."""
    side = _SIZES[0]

    def answer(*colour: int) -> Float[Tensor, "channels height width"]:
        return run(Image.new("RGB", side, colour))

    black, white = answer(0, 0, 0), answer(255, 255, 255)
    visible = visible_part(function, black, white)
    low, high = (one.flatten(1)[:, visible.flatten()].double() for one in (black, white))
    spread = max(float(ends[1].sub(ends[0]).max()) for ends in map(_ends, (low, high)))
    low, high = low.median(dim=1).values, high.median(dim=1).values
    if not bool((high > low).all()) or spread > 0.02 * float((high - low).max()):
        raise ModelError(
            f"{named(function)} does not keep colours: a white picture is no brighter than a black one in every "
            f"channel, or not the same everywhere; {REMEDY}"
        )
    std = 1 / (high - low)
    mean = -low * std
    ground = black[:, ~visible]
    fill = tuple(round(255 * float(x)) for x in (ground.double().mean(dim=1) * std + mean)) if ground.numel() else (0,)
    fill = tuple(min(255, max(0, value)) for value in fill) * (3 // len(fill))
    size = (black.shape[1], black.shape[2])
    learned = Preprocess(
        size,
        size,
        crop_mode="squash",
        mean=tuple(_tidy(value) for value in mean.tolist()),
        std=tuple(_tidy(value) for value in std.tolist()),
        fill=(fill[0], fill[1], fill[2]),
    )

    def keeps(image: Image.Image, *ends: tuple[int, int, int]) -> bool:
        """Whether the darkest and the brightest colour that are seen are these."""
        found = _ends(run(image)[:, visible].double() * std[:, None] + mean[:, None]) * 255
        expected = torch.stack([learned.normalise(Image.new("RGB", (1, 1), end))[:, 0, 0] for end in ends])
        expected = (expected.double() * std + mean) * 255
        return bool((found - expected).abs().max() <= _LEVEL)

    own = {one.name: getattr(learned, one.name) for one in fields(Preprocess)}
    greys = [answer(shade, shade, shade)[:, visible] for shade in map(int, SHADES)]
    shades = tuple(float(one.double().median(dim=1).values.mean()) for one in greys)
    if not all(lower <= higher for lower, higher in pairwise(shades)):
        raise ModelError(f"{named(function)} makes some shades of grey darker than darker ones; {REMEDY}")
    # Of two flat halves each keeps its shade, unless the contrast of the picture is changed.
    halves = Image.new("RGB", side, (100, 100, 100))
    halves.paste((140, 140, 140), (0, 0, side[0] // 2, side[1]))
    plain = keeps(halves, (100, 100, 100), (140, 140, 140))
    for colour in ((200, 100, 50), (10, 240, 120), (60, 60, 220), (128, 128, 128), (30, 30, 30)):
        plain &= keeps(Image.new("RGB", side, colour), colour, colour)
    return CallablePreprocess(**own, function=function, form=form, keeps_colours=plain, shades=shades, learned=learned)


def _ends(values: Float[Tensor, "channels pixels"]) -> Float[Tensor, "2 channels"]:
    """The smallest and largest value but for a tenth of the pixels each, which padding may have mixed in."""
    return values.quantile(torch.tensor([0.1, 0.9]).to(values), dim=1)


def _tidy(value: float) -> float:
    """The number with few digits that this one is, up to the rounding of float32."""
    short = round(value, 5)
    return short + 0.0 if abs(short - value) <= 1e-6 else value
