"""One batch explained: the images prepared, the method asked in passes that fit into memory, its maps checked."""

from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .attention.gradient_modes import GradientMode
from .errors import (
    MovingTokensError,
    NonFiniteError,
    NoSignalError,
    OptionError,
    VitrailError,
)
from .explanation import Explanation
from .inputs import ImagesLike, prepare
from .memory import Sizing, in_passes, kept_bytes
from .methods import MethodInfo, list_methods
from .methods.context import AttributionContext, Progress
from .methods.registry import settle
from .methods.within_patch import cell_contributions, shared_within
from .models.layout import Readout, TokenLayout, layout_for_features, layout_of, readout_weights
from .models.readiness import refuse_training
from .models.vision_model import VisionModel
from .objectives import (
    OBJECTIVES,
    Objective,
    Rivals,
    check_objective,
    class_rows,
    default_objective,
    joined,
    subtract,
)
from .outputs import Output
from .provenance import Provenance
from .targets import (
    Targets,
    Wanted,
    ask_function,
    function_name,
    pair_up,
    parse_targets,
    predicted,
    refuse_same,
    refuse_unpredicted,
)

__all__ = ["attribute"]

NO_COMPETITION = "The model's outputs do not exclude each other, so they do not compete: the map is the class's own."
NO_ROWS = "No linear classifier tells which classes are alike to the model, so every other class counts as a rival."


Part = tuple[Tensor, Tensor, Tensor, Rivals | None]


@torch.inference_mode(False)
def attribute(
    model: VisionModel,
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
    batch_size: int | None = None,
    progress: Progress | None = None,
    cells: int = 1,
    **options: Any,
) -> Explanation:
    """Returns the explanation of a batch; arguments and errors are those of `vitrail.explain`.

    With `cells` above one, a patch's score is shared among as many cells on a side (see `methods.within_patch`).
    """
    info, objective_label, mode, competing = settle(
        method,
        against=against,
        objective=objective,
        gradient=gradient,
        compete=compete,
        centred=centred,
        start_layer=start_layer,
        batch_size=batch_size,
        **options,
    )
    refuse_training(model.module)
    inputs = prepare(model, images, noted=True)
    count = len(inputs.batch)
    layout, options = _layout(model, inputs.batch, info, options)
    output = model.kind_for(inputs.batch)
    wanted, other = pair_up(
        parse_targets(model, target, count, layout.classes, functions=True),
        parse_targets(model, against, count, layout.classes, "against"),
    )
    refuse_same(model, wanted, other)
    if info.class_specific and wanted is None and not callable(objective):
        refuse_unpredicted(output, layout.classes)
    if objective is None:
        objective_label = default_objective(other is not None, output, info.default_objective(other is not None))
    elif not callable(objective):
        check_objective(OBJECTIVES[objective], output)
    if wanted is not None and wanted.functions is not None:
        if objective is not None:
            raise OptionError("target= is a function, which says itself what is explained: leave objective= out")
        objective_label = "function"  # of the images that name a class, its logit
    if layout.graph is not None and readout is not None:
        raise OptionError(
            f"readout={readout!r} names a token, and those of {model.name} do not stay in place: leave it out"
        )
    weights = layout.readout if readout is None else _given_readout(readout, layout)
    first = info.first_layer(layout.layers) if start_layer is None else start_layer
    if compete and wanted is not None and wanted.functions is not None:
        raise OptionError("compete=True holds a class against its rivals, and target= is a function: leave one out")
    competes = competing and objective_label == "logit" and output.link == "softmax" and layout.classes > 1
    rows = class_rows(model, layout.classes) if competes else None

    def explain_some(some: slice) -> Part:
        run = AttributionContext(
            model=model,
            images=inputs.batch[some],
            layout=layout,
            target=wanted and wanted[some],
            against=other and other[some],
            objective="logit" if objective_label == "function" else objective or objective_label,
            readout=weights,
            gradient=mode,
            start_layer=first,
            centred=centred,
            progress=progress,
            output=output,
            competes=competes,
            class_rows=rows,
            to_input=cells > 1,
        )
        relevance = info.function(run, **options)
        maps = relevance.detach() if info.level == "pixel" else layout.as_grid(relevance.detach())
        none = torch.zeros(len(relevance), 1, dtype=torch.bool)
        targets = run.targets.index.shape[1]
        replaced = torch.stack(run.replaced[:targets], dim=1) if run.replaced else none
        if not competes:
            maps = maps if cells == 1 else shared_within(maps, cell_contributions(run, cells))
            return run.logits, maps.expand(-1, targets, -1, -1), replaced, None
        own, theirs = maps[:, :targets], maps[:, targets:]
        maps, taken = subtract(own, theirs if theirs.shape[1] else torch.zeros_like(own))
        if cells > 1:
            found = cell_contributions(run, cells)
            taken = shared_within(taken, found[:, -targets:])
            maps = shared_within(own, found[:, :targets]) - taken
        return run.logits, maps, replaced, Rivals(*run.rivals, taken)

    if count == 1:  # one image is one pass, whatever it takes
        passes = [explain_some(slice(0, 1))]
    else:
        asked = wanted.index.shape[1] if wanted else 1
        kind = (info.name, repr(sorted(options.items())), mode, competing, first, asked)
        kind = (*kind, *inputs.batch.shape[1:], model.dtype, cells > 1)
        sizing = Sizing(model, kind, batch_size, partial(kept_bytes, model, inputs.batch[:1]))

        def watched(some: slice) -> Part:
            with sizing.watching(some.stop - some.start):
                return explain_some(some)

        size = partial(_told_apart, layout, sizing.size)
        passes = list(in_passes(watched, count, size=size, halved=sizing.halved))
    logits, scores, replaced, subtracted = zip(*passes, strict=True)
    all_logits = torch.cat(logits).cpu()
    all_scores = torch.cat(scores).cpu()
    targets = predicted(all_logits) if wanted is None else wanted
    refuse_same(model, targets, other, chosen=wanted is None)
    _check_finite(all_logits, all_scores, inputs.sources, _dropped_signs(info, options))
    nested = targets.nested
    fallback = torch.cat(replaced).cpu()
    rivals = joined([one for one in subtracted if one is not None], nested=nested)
    told = [NO_COMPETITION] if compete and not competes else [NO_ROWS] if competes and rows is None else []
    provenance = Provenance(
        model=model.name,
        origin=model.metadata,
        sources=inputs.sources,
        gradient=mode,
        uses_gradient=info.uses_gradient,
        centred=centred,
        start_layer=first,
        readout=layout.reads if readout is None else repr(readout),
        grid=(layout.rows, layout.cols),
        prefix=layout.prefix,
        options={name: options.get(name, default) for name, default in info.options.items()},
        versions={package: _version(package) for package in ("vitrail", "torch", "timm")},
        class_specific=info.class_specific,
        output=output,
        image_notes=tuple(
            (*read, *told, *_notes(row, objective_label), *layout.notes, *grown)
            for read, row, grown in zip(inputs.notes, fallback, _growth(info, all_scores, all_logits), strict=True)
        ),
        difference_instead=tuple(map(tuple, fallback.tolist())),
        functions=() if targets.functions is None else _function_values(targets, output, all_logits),
    )
    return Explanation(
        scores=all_scores if nested else all_scores[:, 0],
        logits=all_logits.to(all_scores.dtype),
        target=targets.index if nested else targets.index[:, 0],
        against=None if other is None else (other.index if nested else other.index[:, 0]),
        method=info.name,
        objective=objective_label,
        signed=info.is_signed(options) or competes,
        class_names=model.class_names,
        rivals=rivals,
        images=inputs.pictures,
        provenance=provenance,
    )


def _function_values(
    targets: Targets, output: Output, logits: Tensor
) -> tuple[tuple[tuple[str, float] | None, ...], ...]:
    """What captions call each function that was asked about, and its value."""
    numbers = output.numbers(logits)
    return tuple(
        tuple(None if f is None else (function_name(f), ask_function(f, row).item()) for f in functions)
        for functions, row in zip(targets.functions or (), numbers, strict=True)
    )


def _told_apart(layout: TokenLayout, size: Callable[[int], int], left: int) -> int:
    """Returns the size of the next pass, made smaller where it is a number of tokens: in a tensor of as many images as
    tokens no shape shows which of the two come first.
    """
    number = size(left)
    while number > 1 and number in (layout.tokens, layout.patches, layout.all_tokens, len(layout.readout)):
        number -= 1
    return number


def _layout(
    model: VisionModel, batch: Tensor, info: MethodInfo, options: dict[str, Any]
) -> tuple[TokenLayout, dict[str, Any]]:
    """How the model's tokens lie, and the method's options; for a method that looks at one layer only, how that layer's
    output lies, and the layer among the options.
    """
    try:
        if not info.reads_layer:
            return layout_of(model, batch, follow=info.follows), options
        layout, layer = layout_for_features(model, batch, options.get("layer"))
        return layout, options if layer is None else {**options, "layer": layer}
    except MovingTokensError as error:
        if not info.follows:
            able = ", ".join(one.name for one in list_methods() if one.follows)
            error.args = (f"{error}; {info.name} follows no tokens that move, as {able} do",)
        raise


@cache
def _version(package: str) -> str:
    # Read once: finding and parsing a package's metadata takes as long as a small model's forward pass.
    return version(package)


def _given_readout(readout: Readout, layout: TokenLayout) -> Float[Tensor, " queries"]:
    return readout_weights(
        readout, len(layout.readout), layout.prefix, (layout.rows, layout.cols), layout.pools, layout.order
    )


def _dropped_signs(info: MethodInfo, options: dict[str, Any]) -> str | None:
    """Why the map of a method that drops signs may be zero, and what keeps them; None for one that keeps them."""
    if info.is_signed(options) or not info.class_specific:
        return None
    keeps = "relu=False keeps the signs" if "relu" in info.options else "method='complete' keeps the signs"
    return f"{info.name} drops all that argues against the class, and nothing it measures argues for it: {keeps}"


def _growth(info: MethodInfo, scores: Tensor, logits: Tensor) -> list[list[str]]:
    """What to say of relevance that has grown out of all proportion to what it should sum to."""
    largest = scores.abs().flatten(1).amax(dim=1)
    grown = (largest > 1e3 * logits.abs().amax(dim=1)) & ("rules" in info.options)
    return [
        [
            f"The scores reach ±{size:.1e}, though the largest logit is {logit:.3g}: these rules of LRP do not "
            'conserve relevance, and blow up where they divide by sums near zero. Only rules="tattr" keeps the sum.'
        ]
        if too_large
        else []
        for size, logit, too_large in zip(
            largest.tolist(), logits.abs().amax(dim=1).tolist(), grown.tolist(), strict=True
        )
    ]


def _check_finite(
    logits: Tensor, scores: Tensor, sources: tuple[str | None, ...], dropped_signs: str | None = None
) -> None:
    refuse = partial(_refuse, sources=sources)
    refuse(
        ~logits.isfinite().all(dim=1),
        NonFiniteError,
        "the logits of {images}",
        "hold NaN or infinity: check the image and the weights; try float32",
    )
    refuse(
        ~scores.isfinite().flatten(1).all(dim=1),
        NonFiniteError,
        "the map of {images}",
        "holds NaN or infinity though its logits do not: the gradient overflows; run the model in float32, or explain "
        "the logit instead of a quotient",
    )
    flat = scores.flatten(2)
    if dropped_signs is not None:
        refuse(
            (flat == 0).all(dim=2).any(dim=1) & (flat.shape[2] > 1),
            NoSignalError,
            "the map of {images}",
            f"is zero everywhere: {dropped_signs}",
        )
    refuse(
        (flat.amax(dim=2) == flat.amin(dim=2)).any(dim=1) & (flat.shape[2] > 1),
        NoSignalError,
        "the map of {images}",
        "is the same everywhere: nothing in the image moves it (a constant objective, a saturated probability, or "
        "weights that are zero)",
    )


def _refuse(
    wrong: Bool[Tensor, " images"],
    kind: type[VitrailError],
    subject: str,
    predicate: str,
    sources: tuple[str | None, ...],
) -> None:
    if not bool(wrong.any()):
        return
    positions = wrong.nonzero()[:, 0].tolist()
    named = ", ".join(f"{i}" + (f" ({sources[i]})" if sources[i] else "") for i in positions[:5])
    error = kind(f"{subject.format(images=f'image {named}')} {predicate}")
    error.images, error.cause = tuple(positions), f"{subject.format(images='the image')} {predicate}"
    raise error


def _notes(replaced: Bool[Tensor, " targets"], objective: str) -> list[str]:
    count = int(replaced.sum())
    if not count:
        return []
    some = "" if count == len(replaced) else f" for {count} of {len(replaced)} targets"
    return [f"A logit is zero or negative, where {objective} means nothing: the logits' difference is shown{some}."]
