"""A map as a segmentation of its image into object and ground (Chefer, Gur, Wolf 2021, ImageNet-Segmentation).

    object    = map > mean(map)                         the map enlarged and brought to 0…1; or, of a signed map, S > 0
    pixAcc    = Σ_images correct / Σ_images pixels
    mIoU      = mean over {ground, object} of  Σ_images intersection / Σ_images union
    mAP       = mean over images of the average precision of [1 − map, map] against [ground, object], taken as one list
    F1        = mean over images of 2TP / (2TP + FP + FN)

The published "mF1" is another number: the released `get_f1_scores` is given one image and takes its rows for images, so
that it averages the F1 of 224 rows, where rows without object count 0. It is here as `f1(…, rowwise=True)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import OptionError, how_to_install
from ..aggregation import Curves, Statistic
from ..maps import bilinear, enlarged
from ..protocol import Case, Evaluation, Measured, check_one_of, register_protocol

__all__ = ["THRESHOLDS", "Counts", "average_precision", "counts", "f1", "foreground", "segmentation"]

THRESHOLDS = ("mean", "zero")


def foreground(pixels: Float[Tensor, "height width"], threshold: str = "mean") -> Bool[Tensor, "height width"]:
    """Returns the pixels above the map's own mean, or above 0.

    Raises:
        OptionError: for another threshold.

    Example:
        >>> scores = torch.tensor([[-3.0, 0.0, 1.0]])
        >>> foreground(scores).tolist(), foreground(scores, "zero").tolist()
        ([[False, True, True]], [[False, False, True]])
    """
    check_one_of("threshold", threshold, THRESHOLDS)
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
    """Returns the counts that are summed over the images.

    Example:
        >>> counts(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))
        Counts(correct=2, labelled=3, ground_intersection=1, ground_union=2, object_intersection=1, object_union=2)
    """
    both, either = int((found & mask).sum()), int((found | mask).sum())
    neither = mask.numel() - either
    return Counts(both + neither, mask.numel(), neither, mask.numel() - both, both, either)


def f1(found: Bool[Tensor, "height width"], mask: Bool[Tensor, "height width"], *, rowwise: bool = False) -> float:
    """Returns F1 of the object's pixels; `rowwise` averages over rows, as released. 0 where neither has any.

    Example:
        >>> found, mask = torch.tensor([[True, True], [False, False]]), torch.tensor([[True, False], [False, False]])
        >>> round(f1(found, mask), 4), round(f1(found, mask, rowwise=True), 4)
        (0.6667, 0.3333)
    """
    parts = (1,) if rowwise else (0, 1)
    both, sizes = (found & mask).sum(parts).double(), (found.sum(parts) + mask.sum(parts)).double()
    return float((2 * both / sizes.clamp(min=1)).mean())


def average_precision(pixels: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"]) -> float:
    """Returns the average precision of [1 − map, map] against [ground, object], both taken as one list, as scikit-learn
    has it.

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


def summarise_segmentation(
    curves: Curves, *, thresholds: Sequence[str] = THRESHOLDS, **_: object
) -> dict[str, Statistic]:
    """Returns pixel accuracy and mIoU over all pixels of all images; mAP and both F1s as means over images."""
    found = {}
    for threshold in thresholds:
        at = "" if threshold == "mean" else " at 0"

        def column(measure: str, threshold: str = threshold) -> np.ndarray:
            return curves.single(f"{threshold}.{measure}")

        def of_sums(over: Sequence[str], under: Sequence[str]) -> Statistic:
            parts = (np.nan_to_num(np.stack([column(name) for name in names], axis=1)) for names in (over, under))
            return Statistic(*parts, better=1)

        found[f"pixel accuracy{at}"] = of_sums(["correct"], ["labelled"])
        found[f"mIoU{at}"] = of_sums(["ground_intersection", "object_intersection"], ["ground_union", "object_union"])
        found[f"F1{at}"] = Statistic.mean(column("f1"), 1)
        found[f"F1 of rows{at}"] = Statistic.mean(column("f1_rowwise"), 1)
    return {**found, "mAP": Statistic.mean(curves.single("ap"), 1)}


@register_protocol(
    "segmentation", summarise=summarise_segmentation, reference="Chefer, Gur, Wolf 2021 (CVPR)", needs=("mask",)
)
def segmentation(
    case: Case, scores: Float[Tensor, "rows cols"], *, thresholds: Sequence[str] = THRESHOLDS
) -> Evaluation:
    """How well the bilinearly enlarged map, cut at a threshold, is the object's silhouette.

    `thresholds`: "mean" (of the map brought to 0…1, as released) and "zero" (of the raw map, for signed ones). "F1 of
    rows" is what is published as mF1 (see `vitrail.metrics.localisation.segmentation`); F1 is that of the image.
    """
    yield from ()  # it asks nothing of the model
    assert case.mask is not None
    if not thresholds or set(thresholds) - set(THRESHOLDS):
        raise OptionError(f"thresholds={list(thresholds)!r} are unknown; choose from {', '.join(THRESHOLDS)}")
    mask, between = case.mask.to(scores.device), enlarged(scores, case.size)
    measured = [Measured("ap", None, average_precision(between, mask))]
    for threshold in thresholds:
        found = foreground(between if threshold == "mean" else bilinear(scores, case.size), threshold)
        values = counts(found, mask)._asdict() | {"f1": f1(found, mask), "f1_rowwise": f1(found, mask, rowwise=True)}
        measured += [Measured(f"{threshold}.{name}", None, float(value)) for name, value in values.items()]
    return measured
