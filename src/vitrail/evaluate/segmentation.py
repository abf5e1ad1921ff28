"""A map as a segmentation of its image into object and ground (Chefer, Gur, Wolf 2021, ImageNet-Segmentation).

    object    = map > mean(map)                         the map enlarged and brought to 0…1; or, of a signed map, S > 0
    pixAcc    = Σ_images correct / Σ_images pixels
    mIoU      = mean over {ground, object} of  Σ_images intersection / Σ_images union
    mAP       = mean over images of the average precision of [1 − map, map] against [ground, object], taken as one list
    F1        = mean over images of 2TP / (2TP + FP + FN)

The published "mF1" is another number: the released `get_f1_scores` is given one image and takes its rows for images, so
that it averages the F1 of 224 rows, where rows without object count 0. It is here as `f1(…, rowwise=True)`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import OptionError, how_to_install

__all__ = ["THRESHOLDS", "Counts", "average_precision", "counts", "f1", "foreground"]

THRESHOLDS = ("mean", "zero")


def foreground(pixels: Float[Tensor, "height width"], threshold: str = "mean") -> Bool[Tensor, "height width"]:
    """The pixels above the map's own mean, or above 0.

    Raises:
        OptionError: for another threshold.

    Example:
        >>> scores = torch.tensor([[-3.0, 0.0, 1.0]])
        >>> foreground(scores).tolist(), foreground(scores, "zero").tolist()
        ([[False, True, True]], [[False, False, True]])
    """
    if threshold not in THRESHOLDS:
        raise OptionError(f"threshold={threshold!r} is unknown; choose one of {', '.join(THRESHOLDS)}")
    return pixels > (pixels.mean() if threshold == "mean" else 0)


class Counts(NamedTuple):
    """Pixels: those found right, all, and the intersection and union of what was found with the truth."""

    correct: int
    labelled: int
    ground_intersection: int
    ground_union: int
    object_intersection: int
    object_union: int


def counts(found: Bool[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> Counts:
    """What is added up over the images.

    Example:
        >>> counts(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))
        Counts(correct=2, labelled=3, ground_intersection=1, ground_union=2, object_intersection=1, object_union=2)
    """
    both, either = int((found & mask).sum()), int((found | mask).sum())
    neither = mask.numel() - either
    return Counts(both + neither, mask.numel(), neither, mask.numel() - both, both, either)


def f1(found: Bool[Tensor, "height width"], mask: Bool[Tensor, "height width"], *, rowwise: bool = False) -> float:
    """F1 of the object's pixels; `rowwise` the mean of that of each row, as released. 0 where there is none of either.

    Example:
        >>> found, mask = torch.tensor([[True, True], [False, False]]), torch.tensor([[True, False], [False, False]])
        >>> round(f1(found, mask), 4), round(f1(found, mask, rowwise=True), 4)
        (0.6667, 0.3333)
    """
    parts = (1,) if rowwise else (0, 1)
    both, sizes = (found & mask).sum(parts).double(), (found.sum(parts) + mask.sum(parts)).double()
    return float((2 * both / sizes.clamp(min=1)).mean())


def average_precision(pixels: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """The average precision of [1 − map, map] against [ground, object], both taken as one list, as scikit-learn has it.

    `pixels` lie between 0 and 1.

    Raises:
        OptionError: where scikit-learn is not installed.

    Example:
        >>> average_precision(torch.tensor([[0.9, 0.1]]), torch.tensor([[True, False]]))
        1.0
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise OptionError(f"mAP needs scikit-learn: {how_to_install('evaluate')}") from error
    scores = torch.stack([1 - pixels, pixels]).flatten()
    truth = torch.stack([~mask, mask]).flatten()
    return float(average_precision_score(truth.numpy(force=True), scores.numpy(force=True)))
