"""Maps finer than a patch, and steadier: each view of an image explained as it is, and the mean over the views.

A patch's score is shared among its cells by what their pixels add to the answer (`methods.within_patch`), and the image
is moved by parts of a patch (`views`), so that patches meet it at other places. Mirrored or scaled views, and views
without finer cells, only make a map steadier.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .attribution import attribute
from .errors import LayoutError, OptionError, VitrailError
from .explanation import Explanation
from .inputs import ImagesLike, Inputs, Prepared, prepare
from .methods import list_methods
from .methods.registry import settle
from .models.layout import layout_of
from .models.readiness import refuse_training
from .models.vision_model import VisionModel
from .objectives import Rivals
from .targets import Wanted
from .views import USUAL, CellMeans, Smooth, Spread, View, moved, views_of

__all__ = ["Resolution", "explain_finer"]

Resolution = int | Literal["pixel"]

PATCH = (16, 16)  # in whose parts an image is moved for methods that know no patches


def explain_finer(
    model: VisionModel,
    images: ImagesLike,
    target: Wanted = None,
    *,
    against: Wanted = None,
    resolution: Resolution | str = 1,
    effort: int | None = None,
    smooth: Smooth | str | None = None,
    **question: Any,
) -> Explanation:
    """Returns the mean over views; arguments and errors are those of `vitrail.explain`."""
    kind = _kind("shift" if smooth is None else smooth)
    settled = {name: of for name, of in question.items() if name not in ("readout", "progress")}
    info = settle(**settled, against=against).info
    if resolution != 1 and "resolution" not in info.accepts:
        able = ", ".join(one.name for one in list_methods() if "resolution" in one.accepts)
        raise OptionError(f"resolution={resolution!r} is not defined for {info.name}; these take it: {able}")
    refuse_training(model.module)
    inputs = prepare(model, images, noted=True)
    patch, cells = PATCH, 1
    if info.level == "patch" and not info.reads_layer:
        layout = layout_of(model, inputs.batch, follow=info.follows)
        patch = _patch(inputs, (layout.rows, layout.cols))
        cells = _cells(resolution, patch)
    views = views_of(kind, USUAL[kind] if effort is None else effort, patch)
    progress = question.pop("progress", None)
    ask = partial(attribute, model, **question, cells=cells)
    first = ask([Prepared(*one) for one in _rows(inputs)], target, against=against)
    size = (inputs.batch.shape[-2], inputs.batch.shape[-1])
    means, taken, answers = CellMeans(size), CellMeans(size, spreads=False), []
    for number, (view, seen) in enumerate(_seen(ask, first, inputs.batch, views, target, question.get("batch_size"))):
        means.add(_by_target(seen, seen.scores), view)
        if seen.rivals is not None:
            taken.add(_by_target(seen, seen.rivals.scores), view)
        answers.append(_answers(seen))
        if progress is not None:
            progress("views of the image", number + 1, len(views))
    return _joined(first, means, taken, torch.stack(answers, dim=-1), views, {"resolution": resolution, "smooth": kind})


def _seen(
    ask: Callable[..., Explanation],
    first: Explanation,
    batch: Float[Tensor, "images channels height width"],
    views: list[View],
    target: Wanted,
    batch_size: int | None,
) -> Iterator[tuple[View, Explanation]]:
    """Explains view after view, the first of which is known; as many together as `batch_size` holds of all images.

    So memory is that of one map, unless more are asked for.
    """
    count = len(batch)
    classes = target if first.provenance.functions else first.target.tolist()
    others = None if first.against is None else first.against.tolist()
    step = max(1, (batch_size or 0) // count)
    yield views[0], first
    for start in range(1, len(views), step):
        some = views[start : start + step]
        images = torch.cat([moved(batch, view) for view in some])
        try:
            ex = ask(images, _repeated(classes, len(some), count), against=_repeated(others, len(some), count))
        except VitrailError as error:
            if error.images:
                error.images = tuple(sorted({image % count for image in error.images}))
                error.args = (f"in a view of image {', '.join(map(str, error.images))}: {error.cause}",)
            raise
        yield from ((view, ex[number * count : (number + 1) * count]) for number, view in enumerate(some))


def _repeated(wanted: Any, times: int, count: int) -> Any:
    """Returns what is asked of `count` images for as many more."""
    one_each = isinstance(wanted, list | tuple) and len(wanted) == count
    return list(wanted) * times if one_each else wanted


def _kind(smooth: str) -> Smooth:
    for known in get_args(Smooth):
        if smooth == known:
            return known
    raise OptionError(f"smooth={smooth!r} is unknown: choose one of {', '.join(get_args(Smooth))}")


def _rows(inputs: Inputs) -> list[tuple[Any, ...]]:
    pictures = [None] * len(inputs.batch) if inputs.pictures is None else inputs.pictures
    return list(zip(inputs.batch, pictures, inputs.sources, inputs.notes, strict=True))


def _patch(inputs: Inputs, grid: tuple[int, int]) -> tuple[int, int]:
    height, width = inputs.batch.shape[-2:]
    if height % grid[0] or width % grid[1]:
        raise LayoutError(
            f"an input of {height}×{width} pixels is not {grid[0]}×{grid[1]} whole patches, so that it cannot be moved "
            "by parts of one; use an input size that the patches divide"
        )
    return height // grid[0], width // grid[1]


def _cells(resolution: Resolution | str, patch: tuple[int, int]) -> int:
    """Returns the cells on a side of a patch."""
    fitting = [cells for cells in range(1, min(patch) + 1) if not (patch[0] % cells or patch[1] % cells)]
    if resolution == "pixel" and patch[0] == patch[1]:
        return patch[0]
    if isinstance(resolution, int) and not isinstance(resolution, bool) and resolution in fitting:
        return resolution
    pixel = ', or "pixel"' if patch[0] == patch[1] else ""
    raise OptionError(
        f"resolution={resolution!r} does not cut patches of {patch[0]}×{patch[1]} pixels into whole ones: choose one "
        f"of {', '.join(map(str, fitting))}{pixel}"
    )


def _by_target(ex: Explanation, maps: Tensor) -> Float[Tensor, "images targets rows cols"]:
    return maps if ex.scores.ndim == 4 else maps[:, None]


def _answers(ex: Explanation) -> Float[Tensor, "*questions"]:
    """What is asked about, as the model gives it: a function's value, or a logit less that of the other class."""
    flat = ex.target.reshape(len(ex), -1)
    found = ex.logits.gather(1, flat.clamp(min=0))
    if ex.against is not None:
        found = found - ex.logits.gather(1, ex.against.reshape(len(ex), -1))
    for image, functions in enumerate(ex.provenance.functions):
        for number, asked in enumerate(functions):
            if asked is not None:
                found[image, number] = asked[1]
    return found.reshape(ex.target.shape)


def _joined(
    first: Explanation,
    means: CellMeans,
    taken: CellMeans,
    answers: Float[Tensor, "*questions views"],
    views: list[View],
    asked: dict[str, Any],
) -> Explanation:
    def as_asked(maps: Tensor) -> Tensor:
        return maps.to(first.scores.dtype).reshape(first.scores.shape)

    rivals = first.rivals
    if rivals is not None:
        rivals = Rivals(rivals.classes, rivals.weights, as_asked(taken.mean()))
    notes = tuple(
        (*said, *_notes(first, row, asked["smooth"]))
        for said, row in zip(first.provenance.image_notes, answers.reshape(len(first), -1, len(views)), strict=True)
    )
    finer = {**asked, "passes": len(views), "views": [view.record() for view in views]}
    return replace(
        first,
        scores=as_asked(means.mean()),
        rivals=rivals,
        spread=Spread(as_asked(means.error()), answers) if len(views) > 1 else None,
        provenance=replace(first.provenance, finer=finer, image_notes=notes),
    )


HOW = {"shift": "moved by parts of a patch", "flip": "as it is and mirrored", "scale": "smaller and larger"}


def _notes(first: Explanation, answers: Float[Tensor, "targets views"], smooth: Smooth) -> list[str]:
    views = answers.shape[1]
    if views == 1:
        return []
    what = "the difference of the logits" if first.against is not None else "the target's logit"
    what = "the function's value" if first.provenance.functions else what
    spans = [f"{row[0]:.3g} in the image as it is, {min(row):.3g} to {max(row):.3g} in all" for row in answers.tolist()]
    notes = [f"Mean over {views} views of the image, {HOW[smooth]}; {what} is {'; '.join(spans)}."]
    if first.against is not None and bool(((answers < 0).any(dim=1) & (answers > 0).any(dim=1)).any()):
        notes += ["The views disagree about which of the two classes is ahead, so the map is no steady answer."]
    return notes
