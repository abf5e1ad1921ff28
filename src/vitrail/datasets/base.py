"""What every data set gives: named pictures, and what is known about each, on the picture's own pixels.

The pictures chosen from a source, with all that is needed to open the very same again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL import Image

from vitrail.errors import ImageError
from vitrail.metrics.protocol import Parts

__all__ = ["Box", "Content", "Dataset", "Given", "Opened", "Sample", "Selection", "Source", "check_boxes"]

Box = tuple[float, float, float, float]
Content = tuple[str, str]
READERS = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A picture in RGB, and what is known of it; unknown values are None or empty.

    `labels` are all the classes that the data give it where they are several, `label` the first of them;
    `boxes` are (left, top, right, bottom) in pixels, right and bottom excluded; `mask` is the object's silhouette;
    `regions` has one region for each class that the picture is known to hold, and `parts()` tells and redraws the parts
    of a drawn one. A picture that is `fitted` was put
    together at the size of the model's input, and is neither resized nor cropped any more.
    """

    picture: Image.Image
    label: int | None = None
    labels: Sequence[int] = ()
    boxes: Sequence[tuple[float, float, float, float]] | None = None
    mask: Bool[np.ndarray, "height width"] | None = None
    regions: Mapping[int, Bool[np.ndarray, "height width"]] = field(default_factory=dict)
    parts: Callable[[], Parts[np.ndarray, Image.Image]] | None = None
    fitted: bool = False


@runtime_checkable
class Dataset(Protocol):
    """Pictures in a fixed order.

    `annotations` names what at least one sample has: "label", "boxes", "mask", "regions", "parts". `describe` gives
    what a manifest must hold to open the same data again and to notice that they have changed: plain JSON values.
    """

    annotations: frozenset[str]

    def __len__(self) -> int: ...

    def source(self, index: int) -> str:
        """Returns a name of that picture, each its own, that stays the same from run to run."""
        ...

    def sample(self, index: int) -> Sample:
        """Returns the picture and what is known of it. Raises `ImageError` where it cannot be read."""
        ...

    def describe(self) -> dict[str, Any]: ...


@runtime_checkable
class Source(Protocol):
    """What a kind of data gives; `open_data` chooses among its pictures and describes the choice.

    `raw_label` is what the data call the class of a picture where the model has none of that name. `content` tells
    whether a picture and its annotations have changed: a digest of the picture, and one of its boxes and masks.
    `provenance` is what else a manifest must hold to open the same data again. `notes` says what was left out.
    """

    notes: list[str]
    annotations: frozenset[str]

    def __len__(self) -> int: ...

    def source(self, index: int) -> str: ...

    def label(self, index: int) -> int | None: ...

    def raw_label(self, index: int) -> str | None:
        return None

    def content(self, index: int) -> Content: ...

    def provenance(self) -> dict[str, Any]:
        return {}

    def sample(self, index: int) -> Sample: ...


class Selection(Source):
    """Some pictures of another source, in its order."""

    def __init__(self, inner: Source, places: Sequence[int], notes: Sequence[str] = ()) -> None:
        self.inner, self.places, self.notes = inner, list(places), [*inner.notes, *notes]
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


class Opened(Selection):
    """The pictures that `open_data` chose; `arguments` are its own."""

    def __init__(self, inner: Source, places: Sequence[int], arguments: Mapping[str, Any]) -> None:
        super().__init__(inner, places)
        self.arguments = dict(arguments)

    def describe(self) -> dict[str, Any]:
        """Returns the arguments, the number of pictures, the notes, and digests of the names, labels, pictures and
        annotations.

        Every picture is read for them, once; open the data again to see whether they have changed.
        """
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


class Given(Source):
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
        """Returns the label, for which the picture must be read; one that cannot be read has none."""
        return self._told(index)[0]

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
    several = f" {list(sample.labels)}" if sample.labels else ""
    known = hashlib.sha256(f"{sample.label} {sample.boxes} {sample.fitted}{several}".encode())
    for name, region in {"mask": sample.mask, **sample.regions}.items():
        if region is not None:
            known.update(f"{name} {region.shape}".encode() + np.packbits(region).tobytes())
    picture = hashlib.sha256(f"{sample.picture.mode} {sample.picture.size}".encode() + sample.picture.tobytes())
    return sample.label, picture.hexdigest(), known.hexdigest()


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
