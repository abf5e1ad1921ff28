"""What is known of a picture, brought onto the pixels that the model sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from vitrail.datasets.base import Sample
from vitrail.errors import ImageError
from vitrail.metrics.protocol import Parts
from vitrail.models.preprocess import Preprocess

__all__ = ["ModelView", "as_seen", "boxes_as_mask", "seen"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelView:
    """A sample as the model sees it: the normalised image, and boxes, mask, regions and parts on its pixels.

    Unknown values are None, or missing; so is what lies wholly outside the view.
    """

    image: Float[Tensor, "3 height width"]
    boxes: Bool[Tensor, "height width"] | None
    mask: Bool[Tensor, "height width"] | None
    regions: Mapping[int, Bool[Tensor, "height width"]]
    parts: Callable[[], Parts[Tensor, Tensor]] | None = None


def seen(sample: Sample, preprocess: Preprocess) -> ModelView:
    """Returns the sample's picture, boxes, mask and regions, all resized and cropped alike.

    A picture that is `fitted` already is taken as it is.

    Raises:
        ImageError: for a mask of another size than its picture, and a fitted picture of another size than the input.

    Example:
        >>> from PIL import Image
        >>> sample = Sample(picture=Image.new("RGB", (8, 4)), boxes=[(0.0, 0.0, 4.0, 4.0)])
        >>> seen(sample, Preprocess(size=(4, 4), resize=4)).boxes.int().tolist()[0]
        [1, 1, 0, 0]
    """
    height, width = sample.picture.height, sample.picture.width
    if sample.fitted and (height, width) != preprocess.size:
        raise ImageError(
            f"the picture was put together for an input of {width} x {height} pixels, and the model's is "
            f"{preprocess.size[1]} x {preprocess.size[0]}: open the data with this model"
        )

    def placed(mask: Bool[np.ndarray, "h w"]) -> Bool[Tensor, "height width"] | None:
        if mask.shape != (height, width):
            raise ImageError(
                f"a mask of {mask.shape[1]} x {mask.shape[0]} pixels does not fit its picture of {width} x {height}"
            )
        found = torch.from_numpy(mask.copy()) if sample.fitted else as_seen(mask, preprocess)
        return found if bool(found.any()) else None

    regions = {label: region for label, mask in sample.regions.items() if (region := placed(mask)) is not None}
    return ModelView(
        image=preprocess.normalise(sample.picture) if sample.fitted else preprocess(sample.picture),
        boxes=placed(boxes_as_mask(sample.boxes, (height, width))) if sample.boxes else None,
        mask=None if sample.mask is None else placed(sample.mask),
        regions=regions,
        parts=None if sample.parts is None else cache(partial(_parts, sample.parts, placed, preprocess)),
    )


def _parts(
    told: Callable[[], Parts[np.ndarray, Image.Image]],
    placed: Callable[[np.ndarray], Tensor | None],
    preprocess: Preprocess,
) -> Parts[Tensor, Tensor]:
    """Returns the parts on the pixels that the model sees; those wholly outside the view are missing."""
    parts = told()
    masks, things = (
        {name: mask for name, found in some.items() if (mask := placed(found)) is not None}
        for some in (parts.masks, parts.things)
    )

    @cache
    def draw(names: frozenset[str]) -> Tensor:
        return preprocess(parts.draw(names))

    return Parts(masks=masks, things=things, draw=draw, shared=parts.shared, sufficient=parts.sufficient)


def as_seen(mask: Bool[np.ndarray, "h w"], preprocess: Preprocess) -> Bool[Tensor, "height width"]:
    """Returns a mask of the picture on the pixels that the model sees, as `Preprocess.seen_mask` places it.

    Example:
        >>> mask = np.array([[True, False, False, False], [True, False, False, False]])
        >>> as_seen(mask, Preprocess(size=(2, 2), resize=2)).tolist()
        [[False, False], [False, False]]
    """
    return torch.from_numpy(preprocess.seen_mask(mask))


def boxes_as_mask(
    boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    """Returns the mask of all boxes on an image of (height, width): the pixels whose centre lies inside.

    Example:
        >>> boxes_as_mask([(1.0, 0.0, 3.0, 1.0)], (2, 4)).astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    found = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes:
        rows = slice(*(max(0, round(value)) for value in (top, bottom)))
        cols = slice(*(max(0, round(value)) for value in (left, right)))
        found[rows, cols] = True
    return found
