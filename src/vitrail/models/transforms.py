"""A user's own transform, used as it is: how it takes its pictures, and which region of them the model sees."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import ImageError, ModelError
from .preprocess import MAX_RESIZED, Preprocess, require_rgb

__all__ = [
    "REMEDY",
    "SHADES",
    "CallablePreprocess",
    "called",
    "first_line",
    "form_of",
    "named",
    "random_state_kept",
    "run_processor",
    "same_twice",
    "visible_part",
]

REMEDY = "give vitrail.Preprocess(size=(height, width), …), or the transformed pictures as float tensors"
SHADES = np.linspace(0, 255, 18).round().astype(np.uint8)
_TILT = 0.004  # of the picture's side: what a row of the input may rise and still count as level
_BENT = 3.0  # of 255 grey levels along the picture: how far the input may lie off a straight line


class Region(NamedTuple):
    """The edges of the model's input on the picture, in pixels; beyond the picture where it is padded."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True)
class CallablePreprocess(Preprocess):
    """Preprocessing by the user's own function, whose result goes to the model as it is.

    `size`, `mean`, `std` and `fill` are what `learn` found; the other fields of `Preprocess` mean nothing here, and
    none can be changed. `form` is how the function takes a picture. `keeps_colours` says whether it does to a colour
    what `mean` and `std` do: (pixel / 255 - mean) / std in each channel. `shades` is what becomes of shades of grey, on
    average over the channels.
    """

    function: Callable[..., Any] = field(kw_only=True)
    form: str = field(kw_only=True)
    keeps_colours: bool = field(kw_only=True)
    shades: tuple[float, ...] = field(kw_only=True, repr=False)
    learned: Preprocess = field(kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        changed = [one.name for one in fields(Preprocess) if getattr(self, one.name) != getattr(self.learned, one.name)]
        if changed:
            raise ModelError(
                f"the pictures go through the transform that was given, {_short(self.function)}, whose "
                f"{' and '.join(changed)} cannot be changed; give vitrail.Preprocess(size={self.size}, …) in its place"
            )

    @property
    def plain(self) -> bool:
        return self.keeps_colours

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """What the user's function makes of the picture, as float32.

        Raises:
            ImageError: where the function fails, or makes something of another size than it did of the probes.
        """
        require_rgb(image)
        size = f"{image.width} x {image.height} pixels"
        if max(image.size) / min(image.size) * min(self.size) ** 2 > MAX_RESIZED:
            raise ImageError(f"a picture of {size} may fill the memory when it is resized; crop it first")
        try:
            found = called(self.function, self.form, image)
        except MemoryError:
            raise
        except Exception as error:  # the user's function may raise anything
            raise ImageError(f"{_short(self.function)} failed on a picture of {size}: {first_line(error)}") from error
        if found.shape != (self.channels, *self.size):
            raise ImageError(
                f"{_short(self.function)} made {tuple(found.shape)} of a picture of {size}, and "
                f"{(self.channels, *self.size)} of others: the model takes one size"
            )
        return found

    def view(self, image: Image.Image) -> Image.Image:
        return self._shown(self(image), image)

    def with_view(self, image: Image.Image) -> tuple[Float[Tensor, "channels height width"], Image.Image]:
        tensor = self(image)
        return tensor, self._shown(tensor, image)

    def _shown(self, tensor: Float[Tensor, "channels height width"], image: Image.Image) -> Image.Image:
        return Image.fromarray(super().denormalise(tensor)) if self.plain else self._cut(image, self.size)

    def enlarged(self, image: Image.Image, times: int) -> Image.Image:
        return self.view(image) if times == 1 else self._cut(image, (times * self.size[0], times * self.size[1]))

    def normalise(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        self._require_plain()
        return super().normalise(image)

    def denormalise(self, tensor: Float[Tensor, "channels height width"]) -> Any:
        self._require_plain()
        return super().denormalise(tensor)

    def squashed(self, interpolation: str | None = None) -> Preprocess:
        self._require_plain()
        return Preprocess(self.size, None, interpolation or "bicubic", self.mean, self.std)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        message = f"a picture of {width} x {height} is resized by {_short(self.function)} in a way that is not known"
        raise ModelError(f"{message}; {REMEDY}")

    def seen_mask(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "height width"]:
        height, width = mask.shape
        region = self.region(height, width)
        rows = _middles(region.top, region.bottom, self.size[0])
        cols = _middles(region.left, region.right, self.size[1])
        seen = mask[np.clip(rows, 0, height - 1)[:, None], np.clip(cols, 0, width - 1)]
        return seen & ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))

    def region(self, height: int, width: int) -> Region:
        """Returns the region of an image of (height, width) that the model sees; `ImageError` where it is not a
        rectangle.
        """
        return _region(self, height, width)

    def _cut(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The region that is seen, at (height, width) pixels, on a ground of `fill`."""
        top, left, bottom, right = self.region(image.height, image.width)
        around = [-left, -top, right - image.width, bottom - image.height]
        border = tuple(max(0, int(np.ceil(value))) for value in around)
        image = ImageOps.expand(image, border, self.fill)
        box = (left + border[0], top + border[1], right + border[0], bottom + border[1])
        box = tuple(np.clip(box, 0, [image.width, image.height] * 2).tolist())
        return image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)

    def _require_plain(self) -> None:
        if not self.plain:
            raise ModelError(
                f"{_short(self.function)} changes colours otherwise than by mean and std, so pictures cannot be put "
                f"together for this model, nor read back from its input; {REMEDY}"
            )

    def describe(self) -> str:
        return f"pictures become {self.size[1]} x {self.size[0]} pixels (width x height) by {_short(self.function)}"

    def record(self) -> dict[str, Any]:
        # An address differs from process to process, and decides nothing.
        written = re.sub(r" at 0x[0-9a-f]+", "", repr(self.function))
        return {"size": self.size, "mean": self.mean, "std": self.std, "transform": written}


def run_processor(processor: Any, image: Image.Image) -> Any:
    """Runs a Hugging Face image processor, or the one inside a processor of images and texts, on an image."""
    return getattr(processor, "image_processor", processor)(images=image, return_tensors="pt")["pixel_values"]


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image)


def _uint8(image: Image.Image) -> Tensor:
    return torch.from_numpy(_pixels(image)).permute(2, 0, 1).contiguous()


_FORMS: dict[str, Callable[[Callable[..., Any], Image.Image], Any]] = {
    "a PIL image": lambda function, image: function(image.copy()),
    "a uint8 tensor": lambda function, image: function(_uint8(image)),
    "a float tensor": lambda function, image: function(_uint8(image).float() / 255),
    "a uint8 array": lambda function, image: function(_pixels(image)),
    "image=": lambda function, image: function(image=_pixels(image)),
}


class _UnusableError(Exception):
    """What the function returned is no input of a model."""


@torch.no_grad()
def called(function: Callable[..., Any], form: str, image: Image.Image) -> Float[Tensor, "channels height width"]:
    """Returns what the function makes of a picture that is given in one of its forms, as float32 on the CPU."""
    found = _FORMS[form](function, image)
    if isinstance(found, Mapping):
        key = next((key for key in ("pixel_values", "image", "images") if key in found), None)
        if key is None:
            raise _UnusableError(f"returns a mapping with {', '.join(map(str, found))}, none of which is an image")
        found = found[key]
    if isinstance(found, Sequence) and len(found) == 1:
        found = found[0]
    if isinstance(found, np.ndarray):
        channels_last = found.ndim == 3 and found.shape[-1] in (1, 3) and found.shape[0] not in (1, 3)
        found = torch.from_numpy(np.ascontiguousarray(found.transpose(2, 0, 1) if channels_last else found))
    if not isinstance(found, Tensor):
        raise _UnusableError(f"returns {type(found).__name__}, not a tensor: add ToTensor() or what does the same")
    if not found.is_floating_point():
        raise _UnusableError(f"returns {found.dtype}: add ToDtype(torch.float32, scale=True) or what does the same")
    if found.ndim == 4 and len(found) == 1:
        found = found[0]
    if found.ndim != 3 or found.shape[0] not in (1, 3) or found.numel() == 0:
        raise _UnusableError(f"returns a tensor of {tuple(found.shape)}, not of (1 or 3 channels, height, width)")
    return found.as_subclass(Tensor).detach().to("cpu", torch.float32, copy=True).contiguous()


def form_of(function: Callable[..., Any], image: Image.Image) -> str:
    """Returns the form in which the function takes an image: the first of `_FORMS` that gives a float tensor.

    Raises:
        ModelError: when none does, or when whole numbers and fractions are both taken and mean different things.
    """
    refused: dict[str, Exception] = {}
    for form in _FORMS:
        try:
            found = called(function, form, image)
        except MemoryError:
            raise
        except Exception as error:  # the user's function may raise anything
            refused[form] = error
            continue
        if any(isinstance(error, _UnusableError) for error in refused.values()) and form != "a uint8 tensor":
            break  # it does take pictures, and is not finished
        if form == "a uint8 tensor":
            try:
                other = called(function, "a float tensor", image)
            except Exception:  # as it should be
                return form
            if other.shape != found.shape or (other - found).abs().max() > 0.1 * found.abs().max():
                raise ModelError(
                    f"{named(function)} takes tensors from 0 to 255 as well as from 0 to 1, with different results, so "
                    "it is not known which are meant; begin it with torchvision's ToTensor()"
                )
        return form
    unusable = next((error for error in refused.values() if isinstance(error, _UnusableError)), None)
    if unusable is not None:
        raise ModelError(f"{named(function)} {unusable}")
    first = first_line(refused["a PIL image"])
    raise ModelError(f"{named(function)} takes no picture, be it a PIL image ({first}), a tensor or an array; {REMEDY}")


@contextmanager
def random_state_kept():
    """Leaves the generators as they were, so that probing changes no other random number of the user's."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def same_twice(
    function: Callable[..., Any], run: Callable[[Image.Image], Tensor], image: Image.Image
) -> Float[Tensor, "channels height width"]:
    """Returns the function's result for an image; refuses a function that is random, or returns anything but a
    tensor.
    """
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first, second = run(image), run(image)
    drawn = (
        random.getstate() != python
        or not torch.equal(torch.get_rng_state(), pytorch)
        or any(np.any(a != b) for a, b in zip(np.random.get_state(), numpy, strict=True))  # noqa: NPY002
    )
    if drawn or not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ModelError(
            f"{named(function)} is random: it {'draws random numbers' if drawn else 'answers a picture differently'} "
            "each time; give the transform of the evaluation, not that of the training"
        )
    return first


def visible_part(
    function: Callable[..., Any],
    black: Float[Tensor, "channels height width"],
    white: Float[Tensor, "channels height width"],
) -> Bool[Tensor, "height width"]:
    """Returns where the image is visible, not padding: where black and white differ, which must be a rectangle."""
    difference = (white - black).abs().sum(dim=0)
    visible = difference > 0.5 * difference.max()
    rectangle = visible.any(dim=1)[:, None] & visible.any(dim=0)
    if not bool(visible.any()) or not torch.equal(visible, rectangle):
        raise ModelError(
            f"{named(function)} hides parts of the picture, or makes the same of black and white; {REMEDY}"
        )
    return visible


@lru_cache(maxsize=512)
def _region(preprocess: CallablePreprocess, height: int, width: int) -> Region:
    """From ramps of grey along both sides of a picture of this size."""
    function = preprocess.function

    def answer(pixels: np.ndarray) -> Float[Tensor, "1 height width"]:
        whole = np.broadcast_to(pixels.round().astype(np.uint8), (height, width))
        return preprocess(Image.fromarray(np.stack([whole] * 3, axis=-1))).double().mean(dim=0, keepdim=True)

    visible = visible_part(function, answer(np.zeros((1, 1))), answer(np.full((1, 1), 255))).numpy()
    rows, cols = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))

    values, first = np.unique(preprocess.shades, return_index=True)  # two shades may have become one

    def line(ramp: np.ndarray, side: int, seen: np.ndarray, length: int, axis: int) -> tuple[float, float]:
        shades = np.interp(answer(ramp)[0].numpy()[np.ix_(rows, cols)], values, SHADES[first])
        return _line(function, shades / 255 * (side - 1) + 0.5, seen, side, length, axis=axis)

    left, right = line(np.linspace(0, 255, width)[None, :], width, cols, preprocess.size[1], 1)
    top, bottom = line(np.linspace(0, 255, height)[:, None], height, rows, preprocess.size[0], 0)
    return Region(top, left, bottom, right)


def _line(
    function: Callable[..., Any],
    positions: Float[np.ndarray, "rows cols"],
    places: np.ndarray,
    side: int,
    length: int,
    *,
    axis: int,
) -> tuple[float, float]:
    """The first and last edge of the input on the picture's side, from a straight line through the positions.

    `places` are the rows or columns of the input that are seen, `side` the picture's length along this axis in pixels,
    and `length` the input's.
    """
    # At its borders a resizing sees only half of its kernel, or padding.
    rows, cols = (len(one) // 10 for one in (positions, positions[0]))
    positions = np.moveaxis(positions[rows : len(positions) - rows, cols : len(positions[0]) - cols], axis, 1)
    margin = len(places) // 10
    mean, middles = positions.mean(axis=0), places[margin : len(places) - margin] + 0.5
    if len(middles) < 3:
        raise ImageError(
            f"of a picture of this shape {_short(function)} leaves {len(places)} rows or columns, too few to tell "
            "where they lie; crop the picture to a less extreme shape"
        )
    slope, start = np.polyfit(middles, mean, 1)
    tolerance = _BENT / 255 * side + 1
    across = positions.mean(axis=1)
    tilt = abs(np.polyfit(np.arange(len(across)), across, 1)[0]) * len(across) if len(across) > 2 else 0.0
    bent = np.abs(positions - (slope * middles + start)).max()
    if not slope > 0 or tilt > _TILT * side + 0.5 or bent > tolerance:
        raise ModelError(
            f"{named(function)} mirrors, turns or warps the picture ({'columns' if axis else 'rows'} of the input do "
            f"not follow those of the picture), so a map cannot be laid over it; {REMEDY}"
        )
    return float(start), float(start + slope * length)


def _middles(start: float, stop: float, length: int) -> np.ndarray:
    """The pixel of the picture in which the middle of each pixel of the input lies."""
    return np.floor(start + (np.arange(length) + 0.5) * (stop - start) / length).astype(int)


def named(function: Callable[..., Any]) -> str:
    """Returns the argument as it stands in messages."""
    return f"preprocess={_short(function)}"


def _short(function: Callable[..., Any]) -> str:
    """The transform in a few words."""
    if isinstance(function, partial):
        function = function.args[0] if function.func is run_processor else function.func
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return "a lambda" if name.endswith("<lambda>") else name


def first_line(error: Exception) -> str:
    """Returns the kind of an error and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
