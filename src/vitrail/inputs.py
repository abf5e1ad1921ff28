"""Images as users give them, made into the model's input and the picture that it stands for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .errors import ImageError, ModelError
from .images import read_image
from .models.preprocess import Preprocess
from .models.vision_model import VisionModel

__all__ = ["Inputs", "Prepared", "as_items", "prepare", "prepare_one", "source_of"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch ready for the model, what it shows, and where it came from."""

    batch: Float[Tensor, "images channels height width"]
    pictures: UInt8[Tensor, "images height width 3"] | None
    sources: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image ready for the model, the picture that it shows, and the name of its file."""

    tensor: Float[Tensor, "channels height width"]
    picture: UInt8[Tensor, "height width 3"] | None
    source: str | None


def prepare(model: VisionModel, images: Any) -> Inputs:
    """Read one image or a list of them: paths, PIL images, uint8 arrays, or float tensors.

    A float tensor is the model's own input, already normalised: (channels, height, width), or a batch of such. What
    `prepare_one` made is taken as it is. Everything else is preprocessed as the model wants it.

    Raises:
        ImageError: for an unreadable image, an empty list, or images of different sizes.
        ModelError: when the model's preprocessing is not known and an image is not a tensor yet.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        if len(images) == 0:
            raise ImageError("the batch holds no image")
        return Inputs(_on_device(model, images), _pictures(model.preprocess, images), (None,) * len(images))
    items = as_items(images)
    ready = [item if isinstance(item, Prepared) else prepare_one(model, item) for item in items]
    tensors, pictures, sources = zip(*((one.tensor, one.picture, one.source) for one in ready), strict=True)
    sizes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(sizes) > 1:
        raise ImageError(f"images of different sizes {sizes} cannot be one batch: explain them one by one")
    shown = (
        None if any(picture is None for picture in pictures) else torch.stack([p for p in pictures if p is not None])
    )
    return Inputs(_on_device(model, torch.stack(tensors)), shown, sources)


def as_items(images: Any) -> list[Any]:
    """What was given for a batch as a list with one entry an image, unread.

    Raises:
        ImageError: for an empty list or batch.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        items: list[Any] = list(images)
    else:
        items = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
    if not items:
        raise ImageError("the list holds no image")
    return items


def source_of(item: Any) -> str | None:
    """The file's name where an image is given by its path."""
    return Path(item).name if isinstance(item, str | os.PathLike) else None


def prepare_one(model: VisionModel, item: Any) -> Prepared:
    """Read one image, as `prepare` does; on the CPU, and without the model itself, so that threads may do it.

    Raises:
        ImageError, ModelError: as `prepare`.
    """
    if isinstance(item, Tensor) and item.is_floating_point():
        if item.dim() == 4 and len(item) == 1:
            item = item[0]
        if item.dim() != 3:
            raise ImageError(
                f"a float tensor of shape {tuple(item.shape)} is no image: give (channels, height, width), or a batch"
            )
        shown = _pictures(model.preprocess, item[None])
        return Prepared(item, None if shown is None else shown[0], None)
    if model.preprocess is None:
        raise ModelError(
            f"{model.name} comes without preprocessing, so only float tensors can be explained: "
            "give wrap(…, preprocess=Preprocess(…)) for files and pictures"
        )
    if isinstance(item, Tensor):
        item = item.numpy(force=True)
        if item.ndim == 3 and item.shape[0] == 3 and item.shape[-1] not in (3, 4):
            item = item.transpose(1, 2, 0)
    view = model.preprocess.view(read_image(item))
    return Prepared(model.preprocess.normalise(view), torch.from_numpy(np.array(view)), source_of(item))


def _pictures(preprocess: Preprocess | None, batch: Tensor) -> UInt8[Tensor, "images height width 3"] | None:
    if preprocess is None or batch.shape[1] != 3:
        return None
    shown = [np.asarray(preprocess.denormalise(image.detach().cpu().float())) for image in batch]
    return torch.from_numpy(np.stack(shown))


def _on_device(model: VisionModel, batch: Tensor) -> Tensor:
    # Tensors made in inference mode can take no part in a backward pass; a copy can.
    batch = batch.clone() if batch.is_inference() else batch.detach()
    return batch.to(model.device, model.dtype)
