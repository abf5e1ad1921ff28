"""explain(): the one verb. It asks about a batch, beside a guide where one is given, and without what fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import nn

from .attention.gradient_modes import GradientMode
from .attribution import attribute
from .errors import (
    GuideError,
    ImageError,
    NonFiniteError,
    NoSignalError,
    OptionError,
    SameClassError,
    TextError,
    VitrailError,
)
from .explanation import Explanation
from .finer import Resolution, explain_finer
from .guidance.guide import Guide
from .guidance.guided import explain_guided
from .inputs import ImagesLike, Prepared, as_items, prepare_one, source_of
from .methods.context import Progress
from .models import wrap
from .models.layout import Readout
from .models.vision_model import VisionModel
from .objectives import Objective
from .targets import Wanted, repeatable
from .views import Smooth

__all__ = ["OnError", "check_on_error", "explain", "failed_of", "failure_records", "only", "skipping"]

OnError = Literal["raise", "skip"]
Result = TypeVar("Result")

# One image or text can be at fault in these ways; every other error is the question's and would meet all of them.
OF_ONE_IMAGE = (GuideError, ImageError, NonFiniteError, NoSignalError, SameClassError, TextError)


@torch.inference_mode(False)
def explain(
    model: VisionModel | nn.Module,
    images: ImagesLike,
    target: Wanted = None,
    *,
    against: Wanted = None,
    method: str = "complete",
    objective: Objective | None = None,
    gradient: GradientMode | str | None = None,
    compete: bool | None = None,
    centred: bool = False,
    start_layer: int | None = None,
    readout: Readout | None = None,
    guide: ImagesLike | Guide | None = None,
    resolution: Resolution | str = 1,
    smooth: Smooth | str | None = None,
    effort: int | None = None,
    batch_size: int | None = None,
    on_error: OnError | str = "raise",
    progress: Progress | None = None,
    **options: Any,
) -> Explanation:
    """Explains which patches of an image argue for a class, and which against it.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped. It is left exactly as it was.
        images: a path, PIL image, uint8 array, float tensor (the model's own input, normalised), or a list of them.
        target: class name, WordNet id or index; a list (one per image); a nested list (several per image, one forward
            pass); None for the predicted class. Arrays, tensors, Series and one-hot rows are read as lists. A function
            from one image's output (the model's own numbers) to a scalar, or a list of them, is asked about as it is.
        against: the class to compare with, in the same forms; the objective is then the difference of logits.
        method: a name from `vitrail.list_methods()`.
        objective: a name from `vitrail.list_objectives()`, or a callable from the model's output (batch, classes) to
            one number per image, which decides alone what is explained (`target` then only names it). Default: the
            target's logit, with `against` "difference"; "normalized_difference" is Eq. 8 of Cui, Fan, Chen.
        gradient: "full", "leaf" (attention held constant in the backward pass), "libra" (norms and gates too) or "gim"
            (attention corrected for self-repair, norms held constant).
            Default: libra for `complete`; for other methods, and beside a guide, full. `gradient="full"` is the map of
            Cui, Fan, Chen.
        compete: subtract what argues for other classes that are present elsewhere in the image (see
            `vitrail.objectives`): the class's own map less `rivals.scores` of the result. One more backward pass where
            any rival is present; of one class's logit only. Default: True for `complete` where neither `gradient` nor
            another objective nor a guide is given.
        centred: take out of ∇A its mean under A in each row.
        start_layer: first block that takes part, counted from 0, negative from the end; default: the method's own.
        readout: the token whose row is read ("class", "mean", "all", an index, a patch (row, column), or weights);
            default: what the model's head reads.
        guide: external guidance: a picture of another class to lay beside each image (a path, PIL image, uint8 array or
            normalised tensor), a list of them, a folder, "auto" (the model draws one), or a `vitrail.Guide`, which says
            how. The scores are those of the image's own patches; the whole stitched maps are in the result's `guided`.
        resolution: cells on a side of a patch, which its side in pixels must be a multiple of, or "pixel": a patch's
            score is shared among its cells, and the mean taken over the image moved by parts of a patch. Averaged over
            a patch, the scores are near those of `resolution=1`. Methods that list "resolution" in `accepts` take it.
        smooth: "shift" (the image moved by parts of a patch), "flip" (as it is and mirrored) or "scale" (smaller and
            larger): the mean over these views of the image, for every method. Default: none; with `resolution`, shift.
        effort: the number of views, each at the price of one map. Default: 4 shifts, 2 flips, 3 scales. The result's
            `spread` tells their standard error in each cell, and the target's logit in each.
        batch_size: images per pass; default: as many as the free memory holds. Where memory runs out, half as many go
            on, and the log says so.
        on_error: "raise" (default) refuses the whole batch where one image cannot be read, gives NaN, has no signal or
            is held against itself; "skip" returns the others, and lists those in `failures` of the result and in its
            notes. Where none is left, the first error is raised.
        progress: called with (what is being done, steps done, steps in all) by methods that take long.
        **options: the method's own, see `list_methods()`.

    Returns:
        An `Explanation`; its scores are (batch, rows, cols), or (batch, targets, rows, cols) for nested targets: raw,
        signed where the method is, float32 (float64 when the model runs in float64). Rows and columns are the patches',
        or the pixels' for methods of level "pixel".

    Raises:
        VitrailError: one subtype per cause, see `vitrail.errors`; never an empty or silently wrong map.

    Example:
        >>> import timm, torch, vitrail
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> ex = vitrail.explain(vit, torch.randn(2, 3, 160, 160), target=[3, 7])
        >>> ex.scores.shape
        torch.Size([2, 10, 10])
    """
    if not isinstance(model, VisionModel):
        model = wrap(model)
    if on_error != "raise":
        check_on_error(on_error)
    target, against = repeatable(target), repeatable(against, "against")
    ask = partial(
        _way(guide, resolution, smooth, effort),
        method=method,
        objective=objective,
        gradient=gradient,
        compete=compete,
        centred=centred,
        start_layer=start_layer,
        readout=readout,
        batch_size=batch_size,
        progress=progress,
        **options,
    )
    if on_error == "raise":
        return ask(model, images, target, against=against)
    return _without_failures(partial(ask, model), model, images, target, against)


def _way(
    guide: ImagesLike | Guide | None, resolution: Resolution | str, smooth: str | None, effort: int | None
) -> Callable[..., Explanation]:
    """What explains a batch: as it is, beside a guide, or as the mean over views."""
    views = resolution != 1 or smooth is not None
    if effort is not None and not views:
        raise OptionError(f"effort={effort} is a number of views of the image: give resolution= or smooth=, too")
    if not views:
        return attribute if guide is None else partial(explain_guided, guide=guide)
    if guide is not None:
        raise OptionError("guide= cuts patches out of a stitched map: leave it out, or resolution= and smooth=")
    return partial(explain_finer, resolution=resolution, smooth=smooth, effort=effort)


def _without_failures(
    ask: Callable[..., Explanation], model: VisionModel, images: ImagesLike, target: Wanted, against: Wanted
) -> Explanation:
    """The explanation of those images that can be explained; the others are its `failures`."""
    items = as_items(images)
    failed: dict[int, VitrailError] = {}
    ready: list[Any] = list(items)
    for position, item in enumerate(items):
        try:
            ready[position] = prepare_one(model, item)
        except ImageError as error:
            failed[position] = error
    ex, kept = skipping(ask, ready, failed, target, against)
    failures = failure_records(failed, [one.source if isinstance(one, Prepared) else source_of(one) for one in ready])
    return failed_of(ex, kept, failures) if failures else ex


def check_on_error(value: str) -> None:
    """Raises `OptionError` for anything but "raise" and "skip"."""
    if value not in get_args(OnError):
        raise OptionError(
            f'on_error={value!r} is unknown: give "raise" (one failed image refuses all) or "skip" (the others are '
            "returned, the failed ones listed in `failures`)"
        )


def skipping(
    ask: Callable[..., Result], items: Sequence[Any], failed: dict[int, VitrailError], target: Any, against: Any
) -> tuple[Result, list[int]]:
    """Asks about all items, and again without those at fault, which go to `failed` by position with their errors.

    `ask(items, target, against=…)` explains items together; `target` and `against` may hold one entry for each item.
    What is in `failed` already is left out. Returns the result and the positions that it is of.

    Raises:
        VitrailError: the first failed image's error where none is left, and any error that is not one image's.

    Example:
        >>> def ask(images, target, against):
        ...     if "blank" in images:
        ...         raise NoSignalError("nothing moves the objective")
        ...     return target
        >>> failed = {}
        >>> skipping(ask, ["zebra", "blank", "kite"], failed, [340, 340, 21], None), list(failed)
        (([340, 21], [0, 2]), [1])
    """

    def explained(some: list[int]) -> Result:
        wanted, other = (only(asked, some, len(items)) for asked in (target, against))
        return ask([items[position] for position in some], wanted, against=other)

    kept = [position for position in range(len(items)) if position not in failed]
    while kept:
        try:
            return explained(kept), kept
        except OF_ONE_IMAGE as error:
            if len(kept) == 1:
                guilty = {kept[0]: error}
            elif error.images:
                guilty = {kept[i]: error for i in error.images}
            else:
                guilty = _each_alone(explained, kept)
                if not guilty:  # they fail only together
                    raise
            failed |= guilty
            kept = [position for position in kept if position not in failed]
    raise next(iter(failed.values()))


def _each_alone(ask: Callable[[list[int]], object], kept: list[int]) -> dict[int, VitrailError]:
    found: dict[int, VitrailError] = {}
    for position in kept:
        try:
            ask([position])
        except OF_ONE_IMAGE as error:
            found[position] = error
    return found


def only(wanted: Any, kept: Sequence[int], count: int) -> Any:
    """Returns per-image arguments for the kept ones of `count` images; those for all images stay unchanged.

    Example:
        >>> only(["cat", "dog", "owl"], [0, 2], 3), only("cat", [0, 2], 3)
        (['cat', 'owl'], 'cat')
    """
    if isinstance(wanted, str | dict) or not hasattr(wanted, "__len__") or getattr(wanted, "ndim", 1) == 0:
        return wanted
    if len(wanted) != count:  # for `explain` to refuse, or a single row for a single image
        return wanted
    if isinstance(wanted, torch.Tensor | np.ndarray):
        return wanted[list(kept)]
    wanted = list(wanted)  # also of a Series, whose own brackets go by its labels
    return [wanted[position] for position in kept]


def failed_of(ex: Explanation, kept: Sequence[int], failures: Sequence[Mapping[str, Any]]) -> Explanation:
    """Returns the explanation of the images at the positions `kept`, which tells of the others."""
    return replace(ex, provenance=replace(ex.provenance, positions=tuple(kept), failures=tuple(failures)))


def failure_records(failed: Mapping[int, VitrailError], sources: Sequence[str | None]) -> list[dict[str, Any]]:
    """Returns the failures in order as plain JSON values: position, source, type of the error and its message."""
    return [
        {
            "image": position,
            "source": sources[position],
            "error": type(error).__name__,
            "message": error.cause or str(error),
        }
        for position, error in sorted(failed.items())
    ]
