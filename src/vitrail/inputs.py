"""Images as users give them, made into the model's input and the picture that it stands for."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from .errors import ImageError, ModelError
from .images import PictureLike, read_image
from .models.preprocess import Preprocess
from .models.vision_model import VisionModel

__all__ = [
    "ImageLike",
    "ImagesLike",
    "Inputs",
    "Prepared",
    "as_items",
    "prepare",
    "prepare_one",
    "source_of",
]


_log = logging.getLogger("vitrail")


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch ready for the model, what it shows, where it came from, and what is to be noted of each image."""

    batch: Float[Tensor, "images channels height width"]
    pictures: UInt8[Tensor, "images height width 3"] | None
    sources: tuple[str | None, ...]
    notes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image ready for the model, the picture that it shows, the name of its file, and what is to be noted."""

    tensor: Float[Tensor, "channels height width"]
    picture: UInt8[Tensor, "height width 3"] | None
    source: str | None
    notes: tuple[str, ...] = ()


ImageLike: TypeAlias = PictureLike | Tensor | Prepared
ImagesLike: TypeAlias = ImageLike | Iterable[ImageLike]


def prepare(model: VisionModel, images: ImagesLike, *, noted: bool = False) -> Inputs:
    """Reads one image or several of them: paths, bytes, open files, PIL images, arrays of pixels, or tensors.

    Several are a list, a generator or anything else that can be gone through, or an array or tensor with a first axis
    for the images. A float tensor is the model's own input, already normalised: (channels, height, width), or a batch
    of such; a tensor of whole numbers is a picture. What `prepare_one` made is taken as it is. Everything else is
    preprocessed as the model wants it. What is to be noted goes into the log, unless the caller says it (`noted`).

    Raises:
        ImageError: for an unreadable image, an empty list, or images of different sizes.
        ModelError: when the model's preprocessing is not known and an image is not a tensor yet.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        if len(images) == 0:
            raise ImageError("the batch holds no image")
        count = len(images)
        pictures = _pictures(model.preprocess, images)
        inputs = Inputs(_on_device(model, images), pictures, (None,) * count, ((),) * count)
        return _said(_in_patches(model, inputs), noted)
    items = as_items(images)
    ready = [item if isinstance(item, Prepared) else prepare_one(model, item) for item in items]
    sizes = sorted({tuple(one.tensor.shape) for one in ready})
    if len(sizes) > 1:
        raise ImageError(f"images of different sizes {sizes} cannot be one batch: explain them one by one")
    pictures = [one.picture for one in ready if one.picture is not None]
    inputs = Inputs(
        batch=_on_device(model, torch.stack([one.tensor for one in ready])),
        pictures=torch.stack(pictures) if len(pictures) == len(ready) else None,
        sources=tuple(one.source for one in ready),
        notes=tuple(one.notes for one in ready),
    )
    return _said(_in_patches(model, inputs), noted)


def as_items(images: ImagesLike) -> list[ImageLike]:
    """Returns the items of a batch as a list with one entry per image, unread.

    Raises:
        ImageError: for an empty list or batch.
    """
    if isinstance(images, Mapping | set | frozenset):
        kind, has = type(images).__name__, "names" if isinstance(images, Mapping) else "no order"
        raise ImageError(f"the images are a {kind}, which has {has}: give a list of them, in the order of the targets")
    items: list[Any] = [images] if _is_one(images) else list(images)  # type: ignore[arg-type]
    if not items:
        raise ImageError("the list holds no image")
    return items


def source_of(item: ImageLike) -> str | None:
    """Returns the file's name where an image is given by its path."""
    return Path(os.fsdecode(item)).name if isinstance(item, str | os.PathLike) else None


def prepare_one(model: VisionModel, item: ImageLike) -> Prepared:
    """Reads one image, as `prepare` does; on the CPU, and without the model itself, so that threads may do it.

    Raises:
        ImageError, ModelError: as `prepare`.
    """
    if isinstance(item, Prepared):
        return item
    if isinstance(item, Tensor) and item.is_floating_point():
        if item.dim() == 4 and len(item) == 1:
            item = item[0]
        if item.dim() != 3:
            video = "; a video's frames are given as channels, to a model that splits them" if item.dim() > 3 else ""
            raise ImageError(
                f"a float tensor of shape {tuple(item.shape)} is no image: give (channels, height, width), or a "
                f"batch{video}"
            )
        shown = _pictures(model.preprocess, item[None])
        return Prepared(item, None if shown is None else shown[0], None)
    if model.preprocess is None:
        raise ModelError(
            f"{model.name} comes without preprocessing, so only float tensors can be explained: "
            f"give wrap(…, preprocess=Preprocess(…)) for files and pictures{_of_channels(model)}"
        )
    source = source_of(item)
    if isinstance(item, Tensor):
        item = item.numpy(force=True)
        if item.ndim == 3 and item.shape[0] in (3, 4) and item.shape[-1] not in (3, 4):
            item = item.transpose(1, 2, 0)
    notes: list[str] = []
    tensor, view = model.preprocess.with_view(read_image(item, notes=notes))
    return Prepared(tensor, torch.from_numpy(np.array(view)), source, tuple(notes))


def _is_one(images: ImagesLike) -> bool:
    """Returns whether this is one image, and not several."""
    if isinstance(images, Tensor):
        return images.dim() != 4
    if isinstance(images, np.ndarray):
        return images.ndim != 4 and images.dtype.kind not in "OUS"  # the last: an array of paths or pictures
    single = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Prepared)
    return isinstance(images, single) or hasattr(images, "read") or not isinstance(images, Iterable)


def _in_patches(model: VisionModel, inputs: Inputs) -> Inputs:
    """Returns the same with what the model pads or cuts to get whole patches, so that the map lies over what is
    shown.
    """
    batch = model.tiled(inputs.batch)
    old, new = inputs.batch.shape[-2:], batch.shape[-2:]
    if old == new:
        return inputs
    pictures = inputs.pictures
    if pictures is not None:
        down, across = new[0] - old[0], new[1] - old[1]
        pictures = torch.nn.functional.pad(pictures, (0, 0, 0, across, 0, down), value=128)
    verb = "pads" if new > old else "cuts"
    note = (
        f"the model {verb} its input of {old[1]} x {old[0]} pixels to {new[1]} x {new[0]} at the right and the bottom, "
        "and the map lies over that"
    )
    return replace(inputs, batch=batch, pictures=pictures, notes=tuple((*notes, note) for notes in inputs.notes))


def _said(inputs: Inputs, noted: bool) -> Inputs:
    for source, notes in zip(inputs.sources, inputs.notes, strict=True):
        for note in () if noted else notes:
            _log.warning("%s%s", f"{source}: " if source else "", note)
    return inputs


def _of_channels(model: VisionModel) -> str:
    """Returns what a model without preprocessing needs if it takes images other than RGB."""
    channels = model.takes()[0]
    if channels == 1:
        return "; it takes one channel: Preprocess(…, mean=(0.5,), std=(0.5,)) with its own numbers"
    if channels not in (None, 3):
        return f"; but it takes {channels} channels, and pictures have three: give tensors (images, {channels}, …)"
    return ""


def _pictures(preprocess: Preprocess | None, batch: Tensor) -> UInt8[Tensor, "images height width 3"] | None:
    if preprocess is None or batch.shape[1] != preprocess.channels or not preprocess.plain:
        return None
    shown = [np.asarray(preprocess.denormalise(image.detach().cpu().float())) for image in batch]
    return torch.from_numpy(np.stack(shown))


def _on_device(model: VisionModel, batch: Tensor) -> Tensor:
    # Tensors made in inference mode can take no part in a backward pass; a copy can.
    batch = batch.clone() if batch.is_inference() else batch.detach()
    return batch.to(model.device, model.dtype)
