"""The pictures chosen from a source, with all that is needed to open the very same again."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from vitrail.errors import ImageError
from vitrail.evaluate.data.dataset import Dataset, Sample
from vitrail.evaluate.data.pictures import Source

__all__ = ["Given", "Opened"]


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

    def word(self, index: int) -> str | None:
        return self.inner.word(self.places[index])

    def size(self, index: int) -> int:
        return self.inner.size(self.places[index])

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def sample(self, index: int) -> Sample:
        return self.inner.sample(self.places[index])

    def describe(self) -> dict[str, Any]:
        """The arguments, the number of pictures, the notes, and a digest of names, labels and sizes of files.

        The digest is made once; open the data again to see whether they have changed."""
        return {
            **self.arguments,
            **self.inner.facts(),
            "images": len(self),
            "knows": sorted(self.knows),
            "notes": self.notes,
            "digest": self._digest,
        }

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.source(index)}\0{self.label(index)}\0{self.size(index)}\n".encode())
        return digest.hexdigest()


class Given:
    """A data set of the user's own, as a source."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.knows = data, data.knows
        self.notes: list[str] = list(getattr(data, "notes", ()))

    def __len__(self) -> int:
        return len(self.data)

    def source(self, index: int) -> str:
        return self.data.source(index)

    def label(self, index: int) -> int | None:
        """The label, for which the picture must be read; one that cannot be read has none."""
        try:
            return self.data.sample(index).label
        except ImageError:
            return None

    def word(self, index: int) -> str | None:
        return None

    def size(self, index: int) -> int:
        return 0

    def facts(self) -> dict[str, Any]:
        return {"given": self.data.describe()}

    def sample(self, index: int) -> Sample:
        return self.data.sample(index)
