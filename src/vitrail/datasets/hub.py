"""Data sets in the manner of Hugging Face, by name or from a folder of theirs on the disk."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.datasets.base import Content, Sample, Source
from vitrail.datasets.image_folders import file_digest, object_mask
from vitrail.datasets.label_resolver import LabelResolver
from vitrail.errors import DataError, ImageError, how_to_install
from vitrail.images import read_image

__all__ = ["HubData", "parse_name"]

MASKS = ("mask", "segmentation", "annotation")
LABELS = ("label", "labels", "class", "class_name", "fine_label", "wnid", "target")
SPLITS = ("validation", "val", "test", "train")


def parse_name(text: str) -> tuple[str, str | None]:
    """Returns name and split of "NAME[:split]".

    Example:
        >>> parse_name("beans:validation[:10%]"), parse_name("/data/my:photos/x")
        (('beans', 'validation[:10%]'), ('/data/my:photos/x', None))
    """
    found = re.fullmatch(r"(.+?):([A-Za-z_]\w*(?:\[[^\]]*\])?)", text)
    return (found[1], found[2]) if found else (text, None)


class HubData(Source):
    """One split: its picture column, its class column, and a column of masks where there is one.

    Without a split it is the first of validation, val, test, train that there is. Names of classes are matched to the
    model's.

    Raises:
        DataError: without the package `datasets`, for a name that cannot be loaded, an unknown split, or data without
            pictures.
    """

    def __init__(
        self, name: str, split: str | None, classes: LabelResolver, foreground: tuple[int, ...] | None = None
    ) -> None:
        self.foreground, self.notes = foreground, list[str]()
        self.table, self.split = _load(name, split, self.notes)
        pictures = [column for column, kind in self.table.features.items() if type(kind).__name__ == "Image"]
        self.mask = next((column for column in pictures if column in MASKS), None)
        self.picture = next((column for column in pictures if column != self.mask), None)
        if self.picture is None:
            raise DataError(f"hf:{name} has no column of pictures; its columns are {', '.join(self.table.features)}")
        self.labels, self.words = _labels(self.table, classes)
        known = {"label": any(label is not None for label in self.labels), "mask": self.mask is not None}
        self.annotations = frozenset(what for what, there in known.items() if there)
        from datasets import Image

        for column in pictures:  # decoded by Vitrail's own reader, which says what is wrong with a broken one
            self.table = self.table.cast_column(column, Image(decode=False))

    def __len__(self) -> int:
        return len(self.labels)

    def source(self, index: int) -> str:
        return f"{self.split}/{index:06d}"

    def label(self, index: int) -> int | None:
        return self.labels[index]

    def raw_label(self, index: int) -> str | None:
        return self.words[index]

    def content(self, index: int) -> Content:
        row = self.table[index]
        mask = "" if self.mask is None else _digest(row[self.mask])
        return _digest(row[self.picture]), f"{mask} {self.foreground}"

    def provenance(self) -> dict[str, Any]:
        return {"split": self.split}

    def sample(self, index: int) -> Sample:
        row = self.table[index]
        picture = read_image(_content(row[self.picture], self.source(index)))
        mask = None
        if self.mask is not None and row[self.mask] is not None:
            drawn = _values(row[self.mask], f"mask of {self.source(index)}")
            mask = object_mask(drawn, picture.size, f"of {self.source(index)}", self.foreground)
        return Sample(picture=picture, label=self.labels[index], mask=mask)


def _load(name: str, split: str | None, notes: list[str]) -> tuple[Any, str]:
    try:
        import datasets as package
    except ImportError as error:
        raise DataError(f"hf:{name} is read with the package datasets: {how_to_install('data')}") from error
    datasets: Any = package  # its annotations ask for more than it does
    path = Path(name)
    file = {"data_files": name} if path.is_file() else {}
    kind = "parquet" if path.suffix == ".parquet" else path.suffix.lstrip(".") if file else name
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            found = saved if isinstance(saved, dict) else {"train": saved}
            split = split or _usual(list(found), notes)
            if split not in found:
                raise DataError(f"hf:{name} has no split {split}; there are {', '.join(found)}")
            return found[split], split
        if split is None:
            split = "train" if file else _usual(datasets.get_dataset_split_names(name), notes)
        return datasets.load_dataset(kind, split=split, **file), split
    except DataError:
        raise
    except Exception as error:  # the library raises a dozen kinds, of its own, of the network's and of the disk's
        reason = str(error).strip().splitlines()
        raise DataError(
            f"hf:{name}{f':{split}' if split else ''} cannot be loaded: {reason[0] if reason else type(error).__name__}"
        ) from error


def _usual(splits: list[str], notes: list[str]) -> str:
    chosen = next((name for name in SPLITS if name in splits), splits[0])
    if len(splits) > 1:
        notes.append(f"of the splits {', '.join(splits)} {chosen} is taken")
    return chosen


def _labels(table: Any, classes: LabelResolver) -> tuple[list[int | None], list[str | None]]:
    """The class of each row, and what the data call it."""
    named = next((column for column, kind in table.features.items() if type(kind).__name__ == "ClassLabel"), None)
    column = named or next((name for name in LABELS if name in table.features), None)
    if column is None:
        return [None] * len(table), [None] * len(table)
    values = list(table[column])
    if named is None:
        words = [None if value is None else str(value) for value in values]
        known = {word: classes.find(word) for word in dict.fromkeys(words) if word is not None}
        return [None if word is None else known[word] for word in words], words
    names = list(table.features[named].names)
    found = classes.match(names)
    inside = [None if value is None or value < 0 else value for value in values]  # −1 stands for a hidden label
    return (
        [None if value is None else found[value] for value in inside],
        [None if value is None else names[value] for value in inside],
    )


def _digest(cell: Any) -> str:
    content = (cell or {}).get("bytes")
    return hashlib.sha256(content).hexdigest() if content else file_digest(Path((cell or {}).get("path") or ""))


def _content(cell: Any, source: str) -> bytes | str:
    content = (cell or {}).get("bytes") or (cell or {}).get("path")
    if not content:
        raise ImageError(f"{source} holds no picture")
    return content


def _values(cell: Any, source: str) -> np.ndarray:
    from io import BytesIO

    from PIL import Image

    content = _content(cell, source)
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as file:
            return np.asarray(file)
    except Exception as error:  # as Pillow's decoders do
        raise ImageError(f"the {source} cannot be read: {error}") from error
