"""The pictures chosen from a source, with all that is needed to open the very same again."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from vitrail.errors import ImageError
from vitrail.evaluate.data.dataset import Dataset, Sample
from vitrail.evaluate.data.pictures import Content, Source, check_boxes

__all__ = ["Given", "Opened"]

READERS = 4


class Opened:
    """Some pictures of a source, in its order; `arguments` are those of `open_data`, and `notes` what was left out."""

    def __init__(
        self, inner: Source, places: Sequence[int], arguments: Mapping[str, Any], notes: Sequence[str] = ()
    ) -> None:
        self.inner, self.places, self.arguments = inner, list(places), dict(arguments)
        self.notes = [*inner.notes, *notes]
        self.annotations = inner.annotations

    def __len__(self) -> int:
        return len(self.places)

    def source(self, index: int) -> str:
        return self.inner.source(self.places[index])

    def label(self, index: int) -> int | None:
        return self.inner.label(self.places[index])

    def raw_label(self, index: int) -> str | None:
        return self.inner.raw_label(self.places[index])

    def content(self, index: int) -> Content:
        return self.inner.content(self.places[index])

    def provenance(self) -> dict[str, Any]:
        return self.inner.provenance()

    def sample(self, index: int) -> Sample:
        return self.inner.sample(self.places[index])

    def describe(self) -> dict[str, Any]:
        """The arguments, the number of pictures, the notes, and digests of the names, labels, pictures and annotations.

        Every picture is read for them, once; open the data again to see whether they have changed."""
        return {
            **self.arguments,
            **self.inner.provenance(),
            "images": len(self),
            "knows": sorted(self.annotations),
            "notes": self.notes,
            "digests": self._digests,
        }

    @cached_property
    def _digests(self) -> dict[str, str]:
        digests = {name: hashlib.sha256() for name in ("names", "labels", "pictures", "annotations")}
        with ThreadPoolExecutor(READERS) as pool:
            for index, content in enumerate(pool.map(self.content, range(len(self)))):
                told = (self.source(index), self.label(index), *content)
                for digest, one in zip(digests.values(), told, strict=True):
                    digest.update(f"{one}\0".encode())
        return {name: digest.hexdigest() for name, digest in digests.items()}


class Given:
    """A data set of the user's own, as a source."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.annotations = data, data.annotations
        self.notes: list[str] = list(getattr(data, "notes", ()))
        self._known: dict[int, tuple[int | None, str, str]] = {}

    def __len__(self) -> int:
        return len(self.data)

    def source(self, index: int) -> str:
        return self.data.source(index)

    def label(self, index: int) -> int | None:
        """The label, for which the picture must be read; one that cannot be read has none."""
        return self._told(index)[0]

    def raw_label(self, index: int) -> str | None:
        return None

    def content(self, index: int) -> Content:
        return self._told(index)[1:]

    def _told(self, index: int) -> tuple[int | None, str, str]:
        """The label and the content, for which the picture is read once."""
        if index not in self._known:
            try:
                self._known[index] = _digested(self.data.sample(index))
            except ImageError:
                self._known[index] = None, "", ""
        return self._known[index]

    def provenance(self) -> dict[str, Any]:
        return {"given": self.data.describe()}

    def sample(self, index: int) -> Sample:
        found = self.data.sample(index)
        check_boxes(found.boxes or (), found.picture.size, self.source(index))
        return found


def _digested(sample: Sample) -> tuple[int | None, str, str]:
    known = hashlib.sha256(f"{sample.label} {sample.boxes} {sample.fitted}".encode())
    for name, region in {"mask": sample.mask, **sample.regions}.items():
        if region is not None:
            known.update(f"{name} {region.shape}".encode() + np.packbits(region).tobytes())
    picture = hashlib.sha256(f"{sample.picture.mode} {sample.picture.size}".encode() + sample.picture.tobytes())
    return sample.label, picture.hexdigest(), known.hexdigest()
