"""External guidance (Cui, Fan, Chen): the original is explained beside a picture of another class.

Where one class fills a photograph, nothing in it argues for any other, and a signed map has to put its blue on the
object itself. A guide takes it: the two pictures are stitched into one input, the original's class is explained as
ever, and the patches of the original are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution import attribute
from ..errors import GuideError, LayoutError, OptionError
from ..explanation import Explanation
from ..inputs import ImagesLike, Inputs, prepare
from ..memory import in_passes
from ..methods import MethodInfo
from ..methods.context import Progress
from ..methods.registry import settle
from ..models.layout import Readout, TokenLayout, layout_of
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel
from ..outputs import percent
from ..provenance import Box, GuideFacts, Stitch
from ..targets import Targets, Wanted, parse_targets, predicted
from .drawing import class_likeness, dissimilar_class, draw_guide
from .guide import Guide, as_guide
from .stitching import crop_map, plan_stitch, stitch, to_grid, widened

__all__ = ["explain_guided"]

WORDS = {"side": "side by side", "stack": "stacked", "wide": "side by side, wide", "tall": "stacked, tall"}


@dataclass(frozen=True, eq=False)
class Shown:
    """One guide as the model sees it."""

    picture: Float[Tensor, "channels height width"]
    facts: GuideFacts

    def words(self) -> str:
        seen = f"{self.facts.class_name} {percent(self.facts.probability)}"
        drawn = f"a guide that the model drew itself ({seen})"
        return drawn if self.facts.drawn else f"{self.facts.source or 'a guide'} ({seen})"


def explain_guided(
    model: VisionModel,
    images: ImagesLike,
    target: Wanted = None,
    *,
    guide: ImagesLike | Guide,
    compete: bool | None = None,
    readout: Readout | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **question: Any,
) -> Explanation:
    """Explains every image beside its guides; the scores are those of the images' own patches.

    Arguments are those of `vitrail.explain`; `progress` is called while a guide is drawn, too.

    Raises:
        GuideError: when the model sees the target in a guide.
        InputSizeError: for a wide or tall layout that the model does not take.
        LayoutError: when the input cannot be cut into whole patches.
        VitrailError: whatever `vitrail.explain` raises.
    """
    setup = settle(**question, compete=compete, batch_size=batch_size, guided=True)
    if compete:
        raise OptionError("compete=True and guide= are two ways to hold a class against others: leave one of them out")
    refuse_training(model.module)
    _check_guide(setup.info, readout)
    guide = as_guide(guide)
    question |= {"gradient": setup.gradient, "compete": False, "readout": readout, "batch_size": batch_size}
    ask = partial(attribute, **question, progress=progress)
    inputs = prepare(model, images)
    step = batch_size or len(inputs.batch)
    layout = layout_of(model, inputs.batch, follow=setup.info.follows)
    alone = logits_of(model, inputs.batch, step)
    output = model.kind_for(inputs.batch)
    if output.link is None:
        raise output.refusal("a guide, whose class takes what does not argue for the target,")
    wanted = parse_targets(model, target, len(alone), layout.classes) or predicted(alone)
    classes = wanted.index.tolist() if wanted.nested else wanted.index[:, 0].tolist()
    patch = _patch(inputs, layout)
    grid = (layout.rows, layout.cols)
    given = [] if guide.drawn else _given(model, guide, step)
    parts, maps, told, input_words = [], [], [], {}
    for name, sides in _by_layout(guide):
        plans = [plan_stitch(name, side, guide.fit, grid=grid, patch=patch) for side in sides]
        larger, how = model, "the model's own input"
        if name in ("wide", "tall"):
            larger, how = widened(model, plans[0].size, plans[0].grid, inputs.batch.shape[1])
        input_words[name] = how
        if guide.drawn:
            rows = [
                _draw_for_all(model, guide, wanted, plans, grid, patch, inputs.batch.shape, layout.classes, progress)
            ]
        else:
            rows = [[one] * len(alone) for one in given]
        for shown in rows:
            _refuse_same(shown, wanted, inputs.sources)
            for plan in plans:
                guides = [fitted.picture for fitted in shown]
                batch = torch.stack([stitch(o[None], g[None].to(o), plan)[0] for o, g in _pairs(inputs, guides)])
                ex = ask(larger, batch, classes)
                maps.append(crop_map(ex.scores, plan))
                told.append(shown)
                parts.append(_part(ex, plan, shown, inputs.sources, how))
    return _joined(model, inputs, alone, parts, maps, told, guide, input_words)


def _check_guide(info: MethodInfo, readout: Readout | None) -> None:
    if not info.class_specific:
        raise OptionError(f"{info.name} is the same for every class, so guide= cannot steer it")
    if info.level == "pixel":
        raise OptionError(
            f"{info.name} scores pixels, and guide= cuts patches out of a stitched map: use a method of level 'patch'"
        )
    if readout is not None and not isinstance(readout, str):
        raise OptionError(
            f"readout={readout!r} names a token of the image alone; with guide= give a word, or leave it out"
        )


@torch.no_grad()
def logits_of(model: VisionModel, batch: Float[Tensor, "images channels height width"], step: int) -> Tensor:
    """Returns the logits of a batch, `step` images at a time (fewer where memory runs out), on the CPU."""

    def ask(some: slice) -> Tensor:
        return model.logits(batch[some]).float().cpu()

    return torch.cat(list(in_passes(ask, len(batch), size=partial(min, step))))


def _by_layout(guide: Guide) -> list[tuple[str, list[str]]]:
    stitches = guide.stitches()
    return [(name, [side for layout, side in stitches if layout == name]) for name in guide.layouts]


def _pairs(inputs: Inputs, guides: Sequence[Tensor]):
    return zip(inputs.batch, guides, strict=True)


def _patch(inputs: Inputs, layout: TokenLayout) -> tuple[int, int]:
    height, width = inputs.batch.shape[-2:]
    if height % layout.rows or width % layout.cols:
        raise LayoutError(
            f"an input of {height}×{width} pixels is not {layout.rows}×{layout.cols} whole patches, so no half of it "
            "can be given to a guide; use an input size that the patches divide"
        )
    return height // layout.rows, width // layout.cols


def _given(model: VisionModel, guide: Guide, step: int) -> list[Shown]:
    """The user's pictures, each as the model would see it alone, and what it sees there."""
    shown = []
    for item in guide.items():
        inputs = prepare(model, item)
        logits = logits_of(model, inputs.batch, step)
        shown += [
            _shown(model, *pair, drawn=False, index=None)
            for pair in zip(inputs.batch, inputs.sources, logits, strict=True)
        ]
    return shown


def _draw_for_all(
    model: VisionModel,
    guide: Guide,
    wanted: Targets,
    plans: Sequence[Stitch],
    grid: tuple[int, int],
    patch: tuple[int, int],
    shape: Sequence[int],
    classes: int,
    progress: Progress | None = None,
) -> list[Shown]:
    """For each image a guide drawn by the model, of a class far from the image's targets."""
    if plans[0].layout in ("wide", "tall"):
        # A guide that fills the model's own input is drawn there.
        whole = Box(0, 0, *grid)
        plans = [Stitch("alone", "", "squash", grid, whole, whole, whole, patch)]
    channels = shape[1]
    if guide.guide_class is not None:
        own = model.class_index(guide.guide_class, classes)
        if bool((wanted.index == own).any()):
            raise GuideError(
                f"guide_class={model.class_name(own)} is the target itself: a guide must show another class; name "
                "another one, or leave it out for one far from the target"
            )
        chosen = [own] * len(wanted.index)
    else:
        likeness = class_likeness(model, (channels, shape[2], shape[3]), classes)
        chosen = [dissimilar_class(likeness, targets) for targets in wanted.index.tolist()]
    drawn = {}
    for index in dict.fromkeys(chosen):
        picture = draw_guide(model, index, plans, channels=channels, seed=guide.seed, progress=progress)
        rows, cols = plans[0].guide.slices(patch)
        canvas = picture.new_zeros(1, channels, *plans[0].size)
        canvas[0, :, rows, cols] = picture
        drawn[index] = _shown(model, picture, None, logits_of(model, canvas, 1)[0], drawn=True, index=index)
    return [drawn[index] for index in chosen]


def _shown(
    model: VisionModel, picture: Tensor, source: str | None, logits: Tensor, *, drawn: bool, index: int | None
) -> Shown:
    top = int(logits.argmax())
    index = top if index is None else index
    probability = float(model.kind_for(picture[None]).probabilities(logits.double())[index])
    facts = GuideFacts(source, drawn, index, model.class_name(index), float(logits[index]), probability)
    return Shown(picture, facts)


def _refuse_same(shown: Sequence[Shown], wanted: Targets, sources: Sequence[str | None]) -> None:
    for number, (one, targets) in enumerate(zip((each.facts for each in shown), wanted.index.tolist(), strict=True)):
        if one.index in targets:
            image = sources[number] or ("the image" if len(shown) == 1 else f"image {number}")
            source = f"{one.source} " if one.source else ""
            raise GuideError(
                f"the guide {source}is itself seen as {one.class_name} ({percent(one.probability)}), which is the "
                f'target of {image}: a guide must show another class; give another picture, or guide="auto"'
            )


def _part(
    ex: Explanation, plan: Stitch, shown: Sequence[Shown], sources: tuple[str | None, ...], how: str
) -> Explanation:
    stitch = replace(plan, input=how)
    facts = tuple(one.facts for one in shown)
    return replace(ex, provenance=replace(ex.provenance, sources=sources, stitch=stitch, beside=facts))


def _joined(
    model: VisionModel,
    inputs: Inputs,
    alone: Float[Tensor, "images classes"],
    parts: list[Explanation],
    maps: list[Tensor],
    told: list[list[Shown]],
    guide: Guide,
    input_words: dict[str, str],
) -> Explanation:
    """One explanation of the originals: the mean of the cropped maps, with everything stitched beside it."""
    first = parts[0]
    if len({tuple(scores.shape[-2:]) for scores in maps}) > 1:
        own = layout_of(model, inputs.batch, follow=True)
        maps = [to_grid(scores, (own.rows, own.cols)) for scores in maps]
    scores = torch.stack(maps).mean(dim=0)
    pictures = inputs.pictures
    if guide.fit == "crop" and first.images is not None and guide.layouts[0] in ("side", "stack"):
        plan = parts[0].provenance.stitch
        assert plan is not None
        rows, cols = plan.original.slices(plan.patch)
        pictures = first.images[:, rows, cols].contiguous()
    instead = torch.stack([torch.tensor(part.provenance.difference_instead) for part in parts]).any(dim=0)
    provenance = replace(
        first.provenance,
        sources=inputs.sources,
        grid=(scores.shape[-2], scores.shape[-1]),
        image_notes=tuple(_notes(number, parts, told, alone) for number in range(len(alone))),
        difference_instead=tuple(map(tuple, instead.tolist())),
        stitch=None,
        beside=(),
        guides=tuple(tuple(row[number].facts for row in _each_once(told)) for number in range(len(alone))),
        guide={
            "layouts": list(guide.layouts),
            "sides": [side for _, side in guide.stitches()],
            "fit": guide.fit,
            "seed": guide.seed,
            "inputs": input_words,
            "extension": any(name in ("wide", "tall") for name in guide.layouts),
            "averaged": len(parts),
        },
    )
    return replace(
        first,
        scores=scores,
        logits=alone.to(scores.dtype),
        images=pictures,
        provenance=provenance,
        guided=tuple(parts),
    )


def _each_once(told: list[list[Shown]]) -> list[list[Shown]]:
    kept: dict[tuple[int, ...], list[Shown]] = {}
    for row in told:
        kept.setdefault(tuple(map(id, row)), row)
    return list(kept.values())


def _notes(number: int, parts: list[Explanation], told: list[list[Shown]], alone: Tensor) -> tuple[str, ...]:
    first, guides = parts[0], dict.fromkeys(row[number].words() for row in told)
    stitches = [part.provenance.stitch for part in parts if part.provenance.stitch is not None]
    sides: dict[str, dict[str, None]] = {}
    for one in stitches:
        sides.setdefault(WORDS[one.layout], {})[one.side] = None
    places = "; ".join(f"{words}, original {' and '.join(where)}" for words, where in sides.items())
    index = int(first.target.reshape(len(first), -1)[number, 0])
    beside = sorted(part.probability(index, number) or 0.0 for part in parts)
    spread = " to ".join(dict.fromkeys((percent(beside[0]), percent(beside[-1]))))
    before = percent(float(first.output.probabilities(alone[number].double())[index]))
    notes = [
        f"Beside {'; '.join(guides)}: {places}{f' (mean of {len(parts)} maps)' if len(parts) > 1 else ''}. "
        f"Alone the model gives {first.class_name(index)} {before}, beside the guide {spread}."
    ]
    if any(one.layout in ("wide", "tall") for one in stitches):
        notes.append("The larger input is Vitrail's extension of the published method.")
    return *notes, *first.provenance.image_notes[number]
