"""ImageNet-Segmentation as one MATLAB file, `gtsegs_ijcv.mat` (Guillaumin, Küttel, Ferrari 2014), which is HDF5.

Three columns of references: /value/img to pictures (channels, width, height), /value/gt to a cell whose first entry is
a mask (width, height), and /value/id to a name in UTF-16 that begins with the WordNet id.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.datasets.base import Content, Sample, Source
from vitrail.datasets.image_folders import file_digest, object_mask
from vitrail.datasets.label_resolver import LabelResolver
from vitrail.errors import DataError, ImageError
from vitrail.images import read_image

__all__ = ["MatFile"]

_REMEDY = "ImageNet-Segmentation is read with h5py: pip install h5py"


class MatFile(Source):
    """The pictures and masks of that file, with the class where the model has it.

    Raises:
        DataError: without h5py, and for a file that is missing, is no HDF5, or is built otherwise.
    """

    def __init__(self, path: Path, classes: LabelResolver, foreground: tuple[int, ...] | None = None) -> None:
        self.path, self.foreground, self.notes = path, foreground, list[str]()
        if not path.exists():
            raise DataError(f"{path} does not exist")
        with _open(path) as file:
            missing = [name for name in ("/value/img", "/value/gt") if name not in file]
            if missing:
                raise DataError(f"{path} is not built as gtsegs_ijcv.mat is: it has no {' and no '.join(missing)}")
            count = len(file["/value/img"])
            words = [_text(file, index) for index in range(count)] if "/value/id" in file else [None] * count
        self.words = words
        self.labels = [None if word is None else classes.find(word) for word in words]
        self.annotations = frozenset({"mask", *(("label",) if any(label is not None for label in self.labels) else ())})

    def __len__(self) -> int:
        return len(self.words)

    def source(self, index: int) -> str:
        return f"{index:05d}" if self.words[index] is None else f"{index:05d} {self.words[index]}"

    def label(self, index: int) -> int | None:
        return self.labels[index]

    def raw_label(self, index: int) -> str | None:
        return self.words[index]

    def content(self, index: int) -> Content:
        return self.digest, str(self.foreground)

    @cached_property
    def digest(self) -> str:
        """Returns the SHA-256 of the file."""
        return file_digest(self.path)

    def sample(self, index: int) -> Sample:
        # Opened anew each time: an open handle could not be sent to another process.
        with _open(self.path) as file:
            try:
                pixels = np.array(file[file["/value/img"][index, 0]])
                values = np.array(file[file[file["/value/gt"][index, 0]][0, 0]]).T
            except (KeyError, OSError, ValueError) as error:
                raise ImageError(f"{self.path}, picture {index} cannot be read: {error}") from error
        picture = read_image(np.ascontiguousarray(pixels.T))
        found = object_mask(values, picture.size, f"{self.path}, picture {index},", self.foreground)
        return Sample(picture=picture, label=self.labels[index], mask=found)


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError(_REMEDY) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5 (MATLAB 7.3): {error}") from error


def _text(file: Any, index: int) -> str:
    codes = np.array(file[file["/value/id"][index, 0]]).astype("<u2")
    return codes.tobytes().decode("utf-16-le").strip("\0 ")
