"""transfer(): lower one class's logit by moving attention alone, and watch where the reasons go."""

import math
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ImageError, NonFiniteError, OptionError, OutputFileError, TargetError
from ..files import writable_folder
from ..inputs import ImageLike, prepare
from ..methods.context import AttributionContext
from ..models import wrap
from ..models.layout import layout_of
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel
from ..targets import parse_targets, refuse_unpredicted
from .descent import Course, Descent, find_constraint, find_optimiser
from .transfer_result import Belonging, Transfer, fingerprint, read_course, usual_snapshots, write_course

__all__ = ["transfer"]

# An interrupt writes the state; so does this many seconds of work, for a machine that goes down without a word.
SAVE_EVERY = 60.0


@torch.inference_mode(False)
def transfer(
    model: VisionModel | nn.Module,
    image: ImageLike,
    target: str | int | None = None,
    opposing: str | int | None = None,
    *,
    also: Sequence[str | int] = (),
    steps: int = 50,
    lr: float | int = 4e-4,
    optimiser: str = "sgd",
    constraint: str | None = None,
    snapshots: Sequence[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Transfer:
    """Takes the target's logit down by gradient descent on all attention maps of the image, and nothing else.

    The maps (every layer, every head) start as the model's own softmax outputs and are the only parameters; queries
    and keys lose their say, values and all else follow from the running hidden states (Cui, Fan, Chen, the experiment
    on attention transfer). At chosen steps the maps are explained as they stand, by Eq. 5, for the target and for the
    class that attention may go to. At step 0 that is `explain(…, gradient="leaf")`.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped. It is left exactly as it was.
        image: one image, in any form that `vitrail.explain` takes.
        target: class name or index whose logit is lowered; None for the predicted class.
        opposing: the second class that is recorded; None for the strongest other class.
        also: more classes to watch and to draw.
        steps: how many steps, 1 or more.
        lr: the length of a step, above 0.
        optimiser: "sgd" (plain) or "adam".
        constraint: None or "none" (maps are free: rows need not sum to one, nor entries be positive), "clamp" (no
            negative entries), or "softmax" (each row stays a distribution; steps are then taken in log A, where plain
            SGD needs a far larger `lr`).
        snapshots: the steps, from 0 to `steps`, after which maps are drawn; default 0, 5, 10, 20, 50 and the last.
        progress: called with (steps taken, steps) after each.
        state: a .safetensors file that an interrupt (Ctrl-C) leaves behind, and a call with the same question goes on
            from, to the very same numbers. It is gone when the last step is taken.

    Returns:
        A `Transfer`: logits (steps + 1, classes) and maps (snapshots, shown classes, rows, cols), float32 (float64 when
        the model runs in float64).

    Raises:
        TargetError: for a class that the model does not have, or a target that is also the opposing class.
        OptionError: for steps, lr, snapshots, optimiser or constraint out of range.
        ModelError: where the attention maps cannot be had, with kinds of its own (`NoAttentionError`, …).
        NonFiniteError: when the descent leaves the numbers.
        TransferFileError: for a state that belongs to another question, image or model.

    Example:
        >>> import timm, torch, vitrail
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> found = vitrail.counterfactual.transfer(vit, torch.randn(1, 3, 160, 160), target=3, opposing=7, steps=2)
        >>> found.logits.shape, found.maps.shape, found.snapshots
        (torch.Size([3, 10]), torch.Size([2, 2, 10, 10]), (0, 2))
    """
    rule, step = find_constraint(constraint), find_optimiser(optimiser)
    _check_numbers(steps, lr)
    drawn = _snapshots(snapshots, steps)
    if not isinstance(model, VisionModel):
        model = wrap(model)
    refuse_training(model.module)
    inputs = prepare(model, image)
    if len(inputs.batch) != 1:
        raise ImageError(f"attention is moved for one image at a time, and {len(inputs.batch)} are given")
    layout = layout_of(model, inputs.batch)
    run = AttributionContext(model, inputs.batch, layout, None, None, "logit", layout.readout)
    begun = [layer.probabilities() for layer in run.record()]
    plain = run.logits[0].cpu()
    _check_finite(plain)
    output = model.kind_for(inputs.batch)
    if target is None or opposing is None:
        refuse_unpredicted(output, len(plain))
    classes = _classes(model, plain, target, opposing, also)
    descent = Descent(model, inputs.batch, layout, run.readout_row(), classes, rule, step, float(lr), frozenset(drawn))
    asked = {"classes": list(classes), "lr": float(lr), "optimiser": optimiser, "constraint": rule.name}
    course = descent.begin(begun)
    if state is None:
        course = _descend(descent, course, steps, progress, None)
    else:
        belonging = Belonging({**asked, "image": fingerprint(inputs.batch)}, drawn, plain)
        _check_state(state)
        if Path(state).exists():
            course = read_course(state, belonging, steps, course.parameters[0])
        course = _descend(descent, course, steps, progress, lambda course: write_course(state, course, belonging))
        Path(state).unlink(missing_ok=True)
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    return Transfer(
        logits=torch.stack(course.logits).to(wide),
        maps=torch.stack(course.maps).to(wide),
        snapshots=drawn,
        classes=classes,
        lr=float(lr),
        optimiser=optimiser,
        constraint=rule.name,
        class_names=model.class_names,
        image=None if inputs.pictures is None else inputs.pictures[0],
        metadata={
            "model": model.name,
            **model.metadata,
            "sources": list(inputs.sources),
            **output.record(),
            "readout": layout.reads,
            "grid": [layout.rows, layout.cols],
            "attention": _moved(begun, descent.attention(course)),
            "versions": {package: version(package) for package in ("vitrail", "torch", "timm")},
        },
    )


def _descend(
    descent: Descent,
    course: Course,
    steps: int,
    progress: Callable[[int, int], object] | None,
    write: Callable[[Course], None] | None,
) -> Course:
    """Goes all the way; what stops it on the way leaves the last whole course behind."""
    written = time.monotonic()
    try:
        while course.taken < steps:
            course = descent.step(course)
            if write is not None and time.monotonic() - written > SAVE_EVERY:
                write(course)
                written = time.monotonic()
            if progress is not None:
                progress(course.taken, steps)
        return descent.finish(course)
    except NonFiniteError:
        raise  # the same steps would lead to the same end
    except BaseException:
        if write is not None:
            write(course)
        raise


def _check_numbers(steps: int, lr: float | int) -> None:
    if steps < 1:
        raise OptionError(f"steps={steps} moves nothing: take 1 or more")
    if not (lr > 0 and math.isfinite(lr)):
        raise OptionError(f"lr={lr:g} does not lower the logit: it must be a finite number above 0")


def _snapshots(snapshots: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    if snapshots is None:
        return usual_snapshots(steps)
    chosen = tuple(sorted(set(map(int, snapshots))))
    beyond = [step for step in chosen if not 0 <= step <= steps]
    if beyond or not chosen:
        what = f"snapshots after steps {beyond}" if beyond else "no snapshots"
        raise OptionError(f"{what}, but maps can be drawn after steps 0 to {steps}: name one or more of those")
    return chosen


def _classes(
    model: VisionModel,
    logits: Tensor,
    target: str | int | None,
    opposing: str | int | None,
    also: Sequence[str | int],
) -> tuple[int, ...]:
    """Returns the target, the opposing class, and the others, each once."""

    def index(wanted: str | int, name: str) -> int:
        found = parse_targets(model, wanted, 1, len(logits), name)
        assert found is not None
        return int(found.index)

    if len(logits) < 2:
        raise TargetError(f"{model.name} has {len(logits)} class: there is none that attention could go to")
    chosen = [int(logits.argmax()) if target is None else index(target, "target")]
    if opposing is None:
        others = logits.clone()
        others[chosen[0]] = -torch.inf
        chosen.append(int(others.argmax()))
    else:
        chosen.append(index(opposing, "opposing"))
    if chosen[0] == chosen[1]:
        raise TargetError(
            f"target and opposing are both class {chosen[0]} ({model.class_name(chosen[0])}): name two classes"
        )
    return tuple(dict.fromkeys([*chosen, *(index(one, "also") for one in also)]))


def _check_finite(logits: Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(
            "the logits hold NaN or infinity before attention is moved: check the image and the weights; try float32"
        )


def _check_state(state: str | os.PathLike[str]) -> None:
    """Refuses before the work what could not be written after it."""
    path = Path(state)
    if path.suffix != ".safetensors" or path.is_dir():
        raise OutputFileError(f"state={path} is no place for the state of a run: name a .safetensors file")
    writable_folder(path.parent)


def _moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, float]:
    """Returns how far attention has moved, and how far it is from being a distribution."""
    sums = [attention.sum(dim=-1) for attention in after]
    count = sum(attention.numel() for attention in after)
    return {
        "mean_change": sum(float((a - b).abs().sum()) for a, b in zip(after, before, strict=True)) / count,
        "lowest": min(float(attention.min()) for attention in after),
        "negative_share": sum(int((attention < 0).sum()) for attention in after) / count,
        "lowest_row_sum": min(float(total.min()) for total in sums),
        "highest_row_sum": max(float(total.max()) for total in sums),
    }
