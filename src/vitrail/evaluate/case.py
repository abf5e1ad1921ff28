"""One image of a data set as the model sees it, with all that a protocol may know about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..outputs import LOGITS, Output

__all__ = ["Case"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """An image, the class that is explained, and what is known to be true of it.

    `image` is the model's own input, normalised; `logits` are what the model answers to it; `target` is the class that
    the maps are of, `label` the true one. `boxes` (the labelled object's boxes together), `mask` (the object's
    silhouette) and `regions` (one region for each class that the picture is known to hold) lie on the pixels of
    `image`. What is not known is None, or empty. `grid` holds the rows and columns of the model's patches, `prefix` the
    number of tokens before them; `black` and `white` are the normalised values of black and white in each channel;
    `output` is the kind of the model's output, which says what `logits` are.
    `seed` is the image's own, from the run's seed and its place in the data.
    """

    index: int
    source: str
    image: Float[Tensor, "channels height width"]
    logits: Float[Tensor, " classes"]
    target: int
    grid: tuple[int, int]
    prefix: int
    black: tuple[float, ...]
    white: tuple[float, ...] | None = None
    seed: int = 0
    label: int | None = None
    boxes: Bool[Tensor, "height width"] | None = None
    mask: Bool[Tensor, "height width"] | None = None
    regions: Mapping[int, Bool[Tensor, "height width"]] = field(default_factory=dict)
    output: Output = LOGITS

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of `image` in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def predicted(self) -> int:
        """The class with the highest logit."""
        return int(self.logits.argmax())

    def generator(self) -> torch.Generator:
        """A generator on the CPU that gives the same numbers for this image in every run of the same seed."""
        return torch.Generator().manual_seed(self.seed)

    def has_annotation(self, what: str) -> bool:
        """Whether there is a `what`: "label", "boxes", "mask" or "regions"."""
        found = getattr(self, what)
        return found is not None and (what != "regions" or bool(found))
