"""compare(): one question, asked of many methods."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from .attention.gradient_modes import check_gradient_mode
from .comparison import Compared, Comparison
from .errors import ImageError, OptionError
from .explain import explain
from .explanation import Explanation
from .inputs import ImagesLike, as_items, prepare
from .methods import MethodInfo, find_method
from .methods.registry import Chosen, choose_methods
from .models import wrap
from .models.layout import layout_of
from .models.readiness import refuse_training
from .models.vision_model import VisionModel
from .objectives import Objective, default_objective, objective_name
from .provenance import Provenance
from .targets import Targets, Wanted, as_lists, pair_up, parse_targets, predicted

__all__ = ["COMMON", "compare", "passes_taken"]

# Options of `explain` itself that a method can be given alone.
COMMON = ("gradient", "compete", "start_layer", "centred")


@torch.inference_mode(False)
def compare(
    model: VisionModel | nn.Module,
    image: ImagesLike,
    target: Wanted = None,
    *,
    against: Wanted = None,
    methods: str | Sequence[str] = "all",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    objective: Objective | None = None,
    gradient: str | None = None,
    seed: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Comparison:
    """Explains one image by several methods, and measures the time of each.

    A method that fails on this model is no end of the comparison: its answer holds the error instead of a map. Methods
    that are the same for every class are asked without `against` and `objective`.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped. It is left exactly as it was.
        image: one image, in any form that `vitrail.explain` takes.
        target: class name or index, or a list of them, each a row of the sheet; None for the predicted class.
        against: the class to compare with, one, or one for each target; the objective is then their difference.
        methods: names of methods or groups: "all", "fast" (at most four passes), "signed", "unsigned", "class",
            "gradient", "patch", "pixel"; several as a list or separated by commas; "-name" takes one out;
            "complete:libra" asks a method in a gradient mode of its own.
        options: by method, options for it alone: its own, and gradient, compete, start_layer, centred.
        objective: as for `explain`.
        gradient: "full", "leaf", "libra" or "gim", for the methods that use gradients; default: each method's own.
        seed: given to every method that takes a seed.
        progress: called with (label, methods done, methods) before each method and at the end.

    Returns:
        A `Comparison`; each answer's scores are (1, targets, rows, cols), raw, signed where the method is.

    Raises:
        UnknownMethodError: for a name that is neither a method nor a group.
        OptionError: for options of a method that is not compared, or that it does not know.
        VitrailError: for an image, a target, an objective or a model at fault.

    Example:
        >>> import timm, torch, vitrail
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> found = vitrail.compare(vit, torch.randn(1, 3, 160, 160), [3, 7], methods="gae,complete")
        >>> found.maps["complete"].shape
        torch.Size([2, 10, 10])
    """
    chosen = choose_methods(methods)
    given = _given(chosen, options or {})
    check_gradient_mode(gradient or "full")
    objective_name(objective, against)
    if not isinstance(model, VisionModel):
        model = wrap(model)
    refuse_training(model.module)
    images = image if isinstance(image, Tensor) else as_items(image)
    inputs = prepare(model, images)
    if len(inputs.batch) != 1:
        raise ImageError(f"methods are compared on one image at a time, and {len(inputs.batch)} are given")
    layout_of(
        model, inputs.batch, follow=True
    )  # which refuses a model that no method can serve, and warms the machine up
    with torch.no_grad():
        logits = model.logits(inputs.batch).cpu()
    wanted, other = pair_up(_rows(model, target, logits, "target"), _rows(model, against, logits, "against"))
    output = model.kind_for(inputs.batch)
    asked = wanted or predicted(logits, output)
    label = objective_name(objective or default_objective(other is not None, output), against)
    question = {"against": None if other is None else other.index.tolist(), "objective": objective}
    answers = []
    report = progress if progress is not None else lambda *_: None
    for number, one in enumerate(chosen):
        report(one.label, number, len(chosen))
        own = dict(given.get(one.info.name, {}))
        if seed is not None and "seed" in one.info.options:
            own.setdefault("seed", seed)
        # With some options a method is another: one that then uses the gradient of a class, say.
        info = find_method(one.info.name, {key: value for key, value in own.items() if key not in COMMON})
        mode = one.gradient or gradient
        if info.uses_gradient and mode is not None:
            own = {"gradient": mode} | own
        ask = (model, images, asked.index.tolist(), question if info.class_specific else {}, own)
        answers.append(_answer(one.label, info, *ask))
    report("", len(chosen), len(chosen))
    return Comparison(
        answers=tuple(answers),
        logits=logits[0].double() if logits.dtype == torch.float64 else logits[0].float(),
        target=asked.index[0],
        against=None if other is None else other.index[0],
        objective=label,
        class_names=model.class_names,
        image=None if inputs.pictures is None else inputs.pictures[0],
        provenance=Provenance(
            model=model.name,
            origin=model.metadata,
            sources=inputs.sources,
            device=str(model.device),
            gradient=gradient,
            output=output,
            versions={package: version(package) for package in ("vitrail", "torch", "timm")},
        ),
    )


def _given(chosen: Sequence[Chosen], options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options by the methods' own names, once it is sure that each is of a method that is compared."""
    found: dict[str, dict[str, Any]] = {}
    compared = dict.fromkeys(one.info.name for one in chosen)
    for name, values in options.items():
        own = {key: value for key, value in values.items() if key not in COMMON}
        info = find_method(name, own)
        if info.name not in compared:
            raise OptionError(f"options for {name}, which is not among the methods compared: {', '.join(compared)}")
        if "gradient" in values:
            check_gradient_mode(str(values["gradient"]))
        found.setdefault(info.name, {}).update(values)
    return found


def _rows(model: VisionModel, wanted: Wanted, logits: Tensor, name: str) -> Targets | None:
    """Classes as users name them, one or a list of them, as the targets of one image."""
    if wanted is None:
        return None
    plain = as_lists(wanted, name, logits.shape[1])
    row = plain if isinstance(plain, list) else [plain]
    row = row[0] if len(row) == 1 and isinstance(row[0], list) else row  # [a, b], or [[a, b]] as explain takes it
    return parse_targets(model, [row], 1, logits.shape[1], name)


def _answer(
    label: str,
    info: MethodInfo,
    model: VisionModel,
    images: ImagesLike,
    target: list[list[int]],
    question: dict[str, Any],
    own: dict[str, Any],
) -> Compared:
    explanation, error = None, None
    began = time.perf_counter()
    try:
        explanation = explain(model, images, target, method=info.name, **question, **own)
    except Exception as failure:  # whatever a method or a device may raise: the others go on
        error = failure
    return Compared(
        label=label,
        method=info.name,
        signed=info.signed,
        class_specific=info.class_specific,
        level=info.level,
        passes=passes_taken(info, explanation),
        seconds=time.perf_counter() - began,
        options={name: value for name, value in own.items() if (name, value) != ("gradient", info.gradient)},
        explanation=explanation,
        error=error,
    )


def passes_taken(info: MethodInfo, ex: Explanation | None) -> str:
    """Says which passes a method took, "1F 2B": one more backward than it tells where rivals were subtracted."""
    if ex is None or ex.rivals is None or not bool((ex.rivals.weights > 0).any()):
        return info.passes
    return info.passes.replace("1B", "2B") if "1B" in info.passes else f"{info.passes} + 1B"
