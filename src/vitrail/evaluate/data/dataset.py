"""What every data set gives: named pictures, and what is known about each, on the picture's own pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL import Image

__all__ = ["Dataset", "Sample"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A picture in RGB, and what is known of it; what is not known is None or empty.

    `boxes` are (left, top, right, bottom) in pixels, right and bottom excluded; `mask` is the object's silhouette;
    `regions` has one region for each class that the picture is known to hold. A picture that is `fitted` was put
    together at the size of the model's input, and is neither resized nor cropped any more.
    """

    picture: Image.Image
    label: int | None = None
    boxes: Sequence[tuple[float, float, float, float]] | None = None
    mask: Bool[np.ndarray, "height width"] | None = None
    regions: Mapping[int, Bool[np.ndarray, "height width"]] = field(default_factory=dict)
    fitted: bool = False


@runtime_checkable
class Dataset(Protocol):
    """Pictures in a fixed order.

    `annotations` names what at least one sample has: "label", "boxes", "mask", "regions". `describe` gives what a
    manifest must hold to open the same data again and to notice that they have changed: plain JSON values.
    """

    annotations: frozenset[str]

    def __len__(self) -> int: ...

    def source(self, index: int) -> str:
        """A name of that picture, each its own, that stays the same from run to run."""
        ...

    def sample(self, index: int) -> Sample:
        """The picture and what is known of it. Raises `ImageError` where it cannot be read."""
        ...

    def describe(self) -> dict[str, Any]: ...
