"""Picture files with what is known of each: what folders, lists and annotation files come down to."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from vitrail.errors import ImageError
from vitrail.evaluate.data.dataset import Sample
from vitrail.files import open_regular
from vitrail.images import read_image

__all__ = ["Box", "Content", "Entry", "Pictures", "Source", "check_boxes", "check_mask", "file_digest"]

Box = tuple[float, float, float, float]
Content = tuple[str, str]


@runtime_checkable
class Source(Protocol):
    """What a kind of data gives; `open_data` chooses among its pictures and describes the choice.

    `word` is what the data call the class of a picture where the model has none of that name. `content` tells whether a
    picture and what is known of it have changed: a digest of the picture, and one of its boxes and masks. `facts` is
    what else a manifest must hold to open the same data again.
    """

    @property
    def notes(self) -> list[str]: ...

    @property
    def annotations(self) -> frozenset[str]: ...

    def __len__(self) -> int: ...

    def source(self, index: int) -> str: ...

    def label(self, index: int) -> int | None: ...

    def raw_label(self, index: int) -> str | None: ...

    def content(self, index: int) -> Content: ...

    def provenance(self) -> dict[str, Any]: ...

    def sample(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Entry:
    """A file, its name in the data, its class, its boxes and its mask.

    `word` is what the data call the class. Where the model has none of that name, `label` is None.
    """

    path: Path
    source: str
    label: int | None = None
    word: str | None = None
    boxes: tuple[Box, ...] = ()
    mask: Path | None = None


class Pictures:
    """Picture files, read when asked for. `foreground` are the mask's values that count; default all but 0."""

    def __init__(
        self, entries: Sequence[Entry], notes: Sequence[str] = (), foreground: tuple[int, ...] | None = None
    ) -> None:
        self.entries, self.notes, self.foreground = list(entries), list(notes), foreground
        known = {
            "label": any(entry.label is not None for entry in entries),
            "boxes": any(entry.boxes for entry in entries),
            "mask": any(entry.mask for entry in entries),
        }
        self.annotations = frozenset(what for what, there in known.items() if there)

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, index: int) -> str:
        return self.entries[index].source

    def label(self, index: int) -> int | None:
        return self.entries[index].label

    def raw_label(self, index: int) -> str | None:
        return self.entries[index].word

    def content(self, index: int) -> Content:
        entry = self.entries[index]
        mask = "" if entry.mask is None else file_digest(entry.mask)
        return file_digest(entry.path), f"{entry.boxes} {mask} {self.foreground}"

    def provenance(self) -> dict[str, Any]:
        return {}

    def sample(self, index: int) -> Sample:
        entry = self.entries[index]
        picture = read_image(entry.path)
        check_boxes(entry.boxes, picture.size, str(entry.path))
        mask = None if entry.mask is None else read_mask(entry.mask, picture.size, self.foreground)
        return Sample(picture=picture, label=entry.label, boxes=entry.boxes or None, mask=mask)


def check_boxes(boxes: Sequence[Box], size: tuple[int, int], name: str) -> None:
    """Refuses boxes (left, top, right, bottom) that cannot be meant for a picture of `size` (width, height).

    A pixel or two beyond the picture, as rounding leaves them, are cut off and no fault.

    Raises:
        ImageError: for a box outside or partly outside, of no pixel, or that looks like fractions.
    """
    width, height = size
    for left, top, right, bottom in boxes:
        slack = max(2.0, 0.01 * max(width, height))
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            wrong = "lies outside"
        elif max(right, bottom) <= 1 < min(width, height):
            wrong = "looks like fractions of the picture"
        elif max(-left, -top, right - width, bottom - height) > slack:
            swapped = right <= height + slack and bottom <= width + slack
            wrong = f"lies partly outside{' (with x and y swapped it would not)' if swapped else ''}"
        elif round(right) <= round(left) or round(bottom) <= round(top):
            wrong = "covers no pixel"
        else:
            continue
        raise ImageError(
            f"{name} has {width} x {height} pixels, and its box ({left:g}, {top:g}, {right:g}, {bottom:g}) {wrong}; "
            "boxes are left, top, right, bottom in pixels of the upright picture"
        )


def read_mask(
    path: Path, size: tuple[int, int], foreground: tuple[int, ...] | None
) -> Bool[np.ndarray, "height width"]:
    """Where a mask's file holds one of the values of `foreground`, or, for None, anything but 0.

    Raises:
        ImageError: for a file that cannot be read, and for another size than the picture's (width, height).
    """
    from PIL import Image

    try:
        with open_regular(path, 2**32) as opened, Image.open(opened) as file:
            values = np.asarray(file)
    except FileNotFoundError as error:
        raise ImageError(f"the mask {path} does not exist") from error
    except Exception as error:  # of Pillow's decoders each has its own way to fail
        raise ImageError(f"the mask {path} cannot be read: {error}") from error
    found = check_mask(values, size, str(path))
    return found != 0 if foreground is None else np.isin(found, foreground)


def check_mask(values: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """One value per pixel: the mask itself, or the strongest of its colours. Raises `ImageError` for another size."""
    if values.ndim == 3:
        # Of colours the strongest, and never the last channel of two or four, which is how opaque a pixel is.
        values = values[..., : 3 if values.shape[-1] > 2 else 1].max(axis=-1)
    if values.ndim != 2 or values.shape != (size[1], size[0]):
        shape = " x ".join(str(length) for length in reversed(values.shape))
        raise ImageError(
            f"the mask {name} has {shape} pixels and its picture {size[0]} x {size[1]}: "
            "give masks at the picture's own size"
        )
    return values


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content; "" for one that cannot be read, which is told when it is asked for."""
    try:
        with open_regular(path, 2**40) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
