"""The map as a segmentation, as a protocol: counts for each image, put together over the data set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...errors import OptionError
from ...metrics.aggregation import Curves, Statistic
from ..bilinear import bilinear
from ..case import Case
from ..perturbation import enlarged
from ..questions import Evaluation, Measured
from ..segmentation import THRESHOLDS, average_precision, counts, f1, foreground
from .registry import register_protocol

__all__ = ["segmentation"]


def summarise(curves: Curves, *, thresholds: Sequence[str] = THRESHOLDS, **_: object) -> dict[str, Statistic]:
    """Pixel accuracy and mIoU over all pixels of all images; mAP and both F1s as means over images."""
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


@register_protocol("segmentation", summarise=summarise, reference="Chefer, Gur, Wolf 2021 (CVPR)", needs=("mask",))
def segmentation(
    case: Case, scores: Float[Tensor, "rows cols"], *, thresholds: Sequence[str] = THRESHOLDS
) -> Evaluation:
    """How well the bilinearly enlarged map, cut at a threshold, is the object's silhouette.

    `thresholds`: "mean" (of the map brought to 0…1, as released) and "zero" (of the raw map, for signed ones). "F1 of
    rows" is what is published as mF1 (see `vitrail.evaluate.segmentation`); F1 is that of the image.
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
