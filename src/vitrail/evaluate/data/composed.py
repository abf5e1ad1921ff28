"""Several pictures put together at the size of the model's input."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from PIL import Image

from vitrail.errors import DataError
from vitrail.guidance.stitching import Box
from vitrail.models.layout import layout_of
from vitrail.models.preprocess import Preprocess
from vitrail.models.vision_model import VisionModel

__all__ = ["Canvas", "canvas_of"]


@dataclass(frozen=True)
class Canvas:
    """The model's input as a grid of patches, on which pictures are laid; `patch` is (height, width) in pixels."""

    preprocess: Preprocess
    grid: tuple[int, int]
    patch: tuple[int, int]

    def compose(self, pictures: Sequence[Image.Image], boxes: Sequence[Box], *, squash: bool) -> Image.Image:
        """One picture of the input's size: each in its box, whole and out of shape, or cropped as the model does it.

        What no box covers shows the model's mean colour.
        """
        mean = tuple(round(255 * value) for value in self.preprocess.mean) * (3 // self.preprocess.channels)
        whole = Image.new("RGB", (self.preprocess.size[1], self.preprocess.size[0]), mean)
        for picture, box in zip(pictures, boxes, strict=True):
            rows, cols = box.slices(self.patch)
            size = (rows.stop - rows.start, cols.stop - cols.start)
            cell = replace(self.preprocess.squashed(), size=size) if squash else self.preprocess.with_size(size)
            whole.paste(cell.view(picture), (cols.start, rows.start))
        return whole

    def region(self, box: Box) -> Bool[np.ndarray, "height width"]:
        """The pixels of a box."""
        region = np.zeros(self.preprocess.size, dtype=bool)
        region[box.slices(self.patch)] = True
        return region


def canvas_of(model: VisionModel, what: str) -> Canvas:
    """The canvas of a model's own input.

    Raises:
        DataError: for a model without preprocessing; `what` are the pictures that cannot be made for it.
        LayoutError: for a model whose tokens fit no grid.
    """
    if model.preprocess is None:
        raise DataError(f"{model.name} comes without preprocessing, so no {what} can be made for it")
    height, width = model.preprocess.size
    layout = layout_of(model, model.blank())
    return Canvas(model.preprocess, (layout.rows, layout.cols), (height // layout.rows, width // layout.cols))
