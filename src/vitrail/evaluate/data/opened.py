"""The pictures chosen from a source, with all that is needed to open the very same again."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.evaluate.data.dataset import Sample
from vitrail.evaluate.data.pictures import Source

__all__ = ["Opened"]


class Opened:
    """Some pictures of a source, in its order; `arguments` are those of `open_data`, and `notes` what was left out."""

    def __init__(
        self, inner: Source, places: Sequence[int], arguments: Mapping[str, Any], notes: Sequence[str] = ()
    ) -> None:
        self.inner, self.places, self.arguments = inner, list(places), dict(arguments)
        self.notes = [*inner.notes, *notes]
        self.knows = inner.knows

    def __len__(self) -> int:
        return len(self.places)

    def source(self, index: int) -> str:
        return self.inner.source(self.places[index])

    def label(self, index: int) -> int | None:
        return self.inner.label(self.places[index])

    def size(self, index: int) -> int:
        return self.inner.size(self.places[index])

    def sample(self, index: int) -> Sample:
        return self.inner.sample(self.places[index])

    def describe(self) -> dict[str, Any]:
        """The arguments, the number of pictures, the notes, and a digest of names, labels and sizes of files."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.source(index)}\0{self.label(index)}\0{self.size(index)}\n".encode())
        return {
            **self.arguments,
            "images": len(self),
            "knows": sorted(self.knows),
            "notes": self.notes,
            "digest": digest.hexdigest(),
        }
