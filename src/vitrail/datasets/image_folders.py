"""Picture files with what is known of each: what folders, lists and annotation files come down to.

Folders of pictures: one folder per class, pictures side by side, or pictures and masks in two folders.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vitrail.datasets.base import Box, Content, Sample, Source, check_boxes
from vitrail.datasets.label_resolver import LabelResolver, counted, listed
from vitrail.errors import DataError, ImageError
from vitrail.files import open_regular
from vitrail.images import READABLE, read_image, skipped, walk_images

__all__ = [
    "Found",
    "PictureFile",
    "Pictures",
    "called",
    "file_digest",
    "find_folder",
    "object_mask",
]


@dataclass(frozen=True)
class PictureFile:
    """A file, its name in the data, its class, its boxes and its mask.

    `word` is what the data call the class. Where the model has none of that name, `label` is None. `labels` are all
    classes that are given where they are several.
    """

    path: Path
    source: str
    label: int | None = None
    word: str | None = None
    labels: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: Path | None = None


class Pictures(Source):
    """Picture files, read when asked for. `foreground` are the mask's values that count; default all but 0."""

    def __init__(
        self, entries: Sequence[PictureFile], notes: Sequence[str] = (), foreground: tuple[int, ...] | None = None
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
        several = f" {list(entry.labels)}" if entry.labels else ""
        return file_digest(entry.path), f"{entry.boxes} {mask} {self.foreground}{several}"

    def sample(self, index: int) -> Sample:
        entry = self.entries[index]
        picture = read_image(entry.path)
        check_boxes(entry.boxes, picture.size, str(entry.path))
        mask = None if entry.mask is None else read_mask(entry.mask, picture.size, self.foreground)
        return Sample(picture=picture, label=entry.label, labels=entry.labels, boxes=entry.boxes or None, mask=mask)


def read_mask(
    path: Path, size: tuple[int, int], foreground: tuple[int, ...] | None
) -> Bool[np.ndarray, "height width"]:
    """Reads a mask: true where the file holds one of the values of `foreground`, or, for None, anything but 0.

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
    return object_mask(values, size, str(path), foreground)


def object_mask(
    values: np.ndarray, size: tuple[int, int], name: str, foreground: tuple[int, ...] | None
) -> Bool[np.ndarray, "height width"]:
    """Returns where a mask, one value or colour per pixel, shows the object. Raises `ImageError` for another size."""
    if values.ndim == 3:
        # Of colours the strongest, and never the last channel of two or four, which is how opaque a pixel is.
        values = values[..., : 3 if values.shape[-1] > 2 else 1].max(axis=-1)
    if values.ndim != 2 or values.shape != (size[1], size[0]):
        shape = " x ".join(str(length) for length in reversed(values.shape))
        raise ImageError(
            f"the mask {name} has {shape} pixels and its picture {size[0]} x {size[1]}: "
            "give masks at the picture's own size"
        )
    return values != 0 if foreground is None else np.isin(values, foreground)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content; "" for one that cannot be read, which is told when it is asked for."""
    try:
        with open_regular(path, 2**40) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


Found = tuple[list[PictureFile], list[str]]


def find_folder(folder: Path, classes: LabelResolver) -> Found:
    """Returns every picture below a folder; its class is that of the first folder on its way, or of its own name.

    A folder is called by a WordNet id, a name or an index; a file by a WordNet id or a name, numbered or not. What is
    in a folder of no class keeps the folder's name as its `word`.

    Raises:
        DataError: for a folder that is missing, cannot be read, or holds no picture.
    """
    entries: list[PictureFile] = []
    empty: list[str] = []
    labels: dict[str, int | None] = {}
    found, left = _walk(folder, empty)
    for path in found:
        source = path.relative_to(folder)
        if len(source.parts) == 1:
            label, word = called(path.stem, classes), None
        else:
            word = source.parts[0]
            if word not in labels:
                labels[word] = classes.find(word)
            label = labels[word]
        # A name that is no UTF-8 could be written nowhere.
        name = source.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")
        entries.append(PictureFile(path, name, label, word))
    if not entries:
        raise DataError(f"{folder} holds no picture (suffixes {READABLE})")
    notes = [f"without any picture: {counted(len(empty), 'class folder')}, {listed(empty)}"] if empty else []
    return entries, notes + ([left] if left is not None else [])


def called(stem: str, classes: LabelResolver) -> int | None:
    """Returns the class that a file's own name tells: "n02391049_zebra", "bald_eagle", "zebra-12".

    Example:
        >>> classes = LabelResolver(("horse", "bald eagle"))
        >>> [called(stem, classes) for stem in ("bald_eagle-3", "horse", "1", "IMG_1")]
        [1, 0, None, None]
    """
    for word in (stem, stem.rstrip("0123456789").rstrip("_- "), _without_synset(stem)):
        if word and not word.isdecimal() and (found := classes.find(word)) is not None:
            return found
    return None


def _without_synset(stem: str) -> str:
    head, _, rest = stem.partition("_")
    return rest if len(head) == 9 and head[1:].isdecimal() else ""


def _walk(folder: Path, empty: list[str]) -> tuple[list[Path], str | None]:
    """Every picture, in the order of names, and a sentence on what was skipped; into `empty` go the folders right below
    that hold none."""
    if not folder.exists():
        raise DataError(f"{folder} does not exist")

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    found, others = walk_images(folder, refuse=refuse)
    full = {path.relative_to(folder).parts[0] for path in found}
    below = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty += [name for name in below if name not in full]
    return found, skipped(others)
