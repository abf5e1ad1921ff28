"""evaluate(): a run from its question to its folder."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..datasets import Dataset, open_data
from ..datasets.base import Opened
from ..datasets.label_resolver import counted, listed
from ..errors import DataError, OutputKindError
from ..metrics import find_protocol
from ..models import VisionModel, wrap
from ..models.layout import layout_of
from ..models.readiness import refuse_training
from ..targets import refuse_unpredicted
from ..threads import thread_count
from .block_evaluator import BlockEvaluator
from .block_worker import READERS, fitted
from .cost import cost_of
from .engines import find_engine, local_rank, measure_missing, rows_and_threads, together
from .manifest import manifest_of
from .plan import EvaluationPlan, make_plan
from .run_directory import RunFolder
from .run_reader import EvaluationRun, read_run

__all__ = ["Estimate", "Outcome", "estimate", "evaluate"]

HINTS = {
    "boxes": "boxes are left, top, right, bottom in pixels of the upright picture, and must lie where the model looks",
    "mask": "a mask must hold the object's value (category; default all but 0) where the model looks",
    "label": "classes are called by index, whole name or WordNet id",
    "regions": "regions come with mosaics, stitched pictures and the bestiary's pairs",
    "parts": "parts come with the bestiary's singles, or with a data set of your own",
}

FEW = 4  # images from which the time of all is estimated

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """Where a run lies, how many images it is of, and how many of them were measured just now, by all processes."""

    folder: Path
    images: int
    measured: int
    notes: tuple[str, ...] = ()


def evaluate(
    model: VisionModel | nn.Module,
    data: str | Path | Dataset,
    methods: str | Sequence[str] = "complete",
    protocols: Sequence[str] = (),
    *,
    output: str | os.PathLike[str],
    preset: str | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    protocol_options: Mapping[str, Mapping[str, Any]] | None = None,
    target: str | None = None,
    fit: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    block: int = 16,
    batch_size: int | None = None,
    keep: int = 500,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Outcome:
    """Measures methods by protocols on a data set, into a folder from which an interrupted run resumes.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped.
        data: a folder, a list file, or a name, as `open_data` takes them, with `data_options`; or a `Dataset`.
        methods: names or groups, as `vitrail.compare` takes them; "complete:libra" names a gradient mode.
        protocols: names from `list_protocols()`; default: those of the preset.
        output: the folder of the run. If it holds a part of the same run, the rest is added.
        preset: whose protocols and options are taken where nothing else is said; "bi" where no protocol is named.
        method_options: options by the name of the method.
        protocol_options: options by the name of the protocol.
        target: the class that is explained, "label" or "predicted".
        fit: "model" for the model's own preprocessing, "squash" for whole pictures squashed to its size.
        limit: the largest number of images, evenly over the classes.
        seed: of everything that is drawn.
        block: images that are measured and written together; a killed run loses one block's work at most.
        batch_size: rows in one pass; default: chosen for the device, and as before where a run resumes.
        keep: number of images whose pictures and maps are stored for the report.
        engine: "local" (shared among the processes of torchrun, where it has started this one) or "ray";
            `engine_options` go to it.
        progress: called with (images done, images in all).

    Raises:
        DataError: when there is nothing to measure, or the data do not know what a protocol needs.
        RunFolderError, RunFolderInUseError: when `output` holds another run, or another process writes there.
        OutputFileError: when it cannot be written.
        VitrailError: others, by cause, for a question that cannot be asked.

    Example:
        >>> import tempfile, vitrail
        >>> model = vitrail.load("bestiary")
        >>> done = evaluate(model, "bestiary:single:2", "raw", ["pointing"], output=tempfile.mkdtemp())
        >>> done.images, done.measured
        (2, 2)
    """
    find_engine(engine)  # before anything is read
    folder = RunFolder(output)
    with together():
        model, opened, plan = _asked(
            model,
            data,
            folder,
            batch_size,
            {"limit": limit, **(data_options or {})},
            methods=methods,
            protocols=protocols,
            preset=preset,
            method_options=method_options,
            protocol_options=protocol_options,
            target=target,
            fit=fit,
            seed=seed,
            block=block,
            keep=keep,
        )
        worker = BlockEvaluator(model, opened, plan)
        done = measure_missing(
            worker,
            folder,
            manifest_of(model, opened, plan, methods=list(plan.methods), protocols=plan.protocols, preset=plan.preset),
            engine=engine,
            engine_options=engine_options,
            progress=progress,
        )
    again = f"measured again: {counted(len(folder.damaged), 'block')} of images, {listed(folder.damaged, 2)}"
    notes = [*opened.notes, *([again] if folder.damaged else [])]
    if plan.target == "label" and (unknown := sum(opened.label(index) is None for index in range(len(opened)))):
        notes.append(
            f"of {counted(unknown, 'picture')} the predicted class is explained, for the true one is not known"
        )
    if not local_rank():  # the first process speaks for all
        _refuse_nothing(read_run(folder.path))
    return Outcome(folder.path, len(opened), len(opened) - done, tuple(notes))


@dataclass(frozen=True)
class Estimate:
    """What the rest of a run takes: images in all and left, seconds of each, and of all that are left."""

    images: int
    left: int
    seconds_per_image: float
    seconds: float
    notes: tuple[str, ...] = ()


def estimate(
    model: VisionModel | nn.Module,
    data: str | Path | Dataset,
    *,
    output: str | os.PathLike[str],
    batch_size: int | None = None,
    limit: int | None = None,
    data_options: Mapping[str, Any] | None = None,
    **question: Any,
) -> Estimate:
    """Measures up to four images and tell what the whole run takes in one process; takes what `evaluate` does.

    Nothing is written. Raises what `evaluate` raises for a question that cannot be asked.
    """
    folder = RunFolder(output)
    options = {"limit": limit, **(data_options or {})}
    model, opened, plan = _asked(model, data, folder, batch_size, options, **question)
    worker = BlockEvaluator(model, opened, plan)
    places = sorted({len(opened) * number // FEW for number in range(FEW)})
    with thread_count(plan.threads), ThreadPoolExecutor(READERS) as pool:
        worker.read_some(places[:1], pool)
        begun = time.perf_counter()
        images = worker.read_some(places, pool)
        reading = (time.perf_counter() - begun) / len(places)
        taken = []
        for some in (images, images[:1], images):  # the first warms up
            begun = time.perf_counter()
            worker.measure(0, some)
            taken.append(time.perf_counter() - begun)
    _, one, all_ = taken
    # What a block costs in addition to its images, randomised copies of the model say, is paid once by each.
    each = max((all_ - one) / (len(images) - 1), 0.0) if len(images) > 1 else one
    beside = max(one - each, 0.0)
    aside = (os.cpu_count() or 1) > plan.threads  # pictures are read while others are measured
    left = worker.images(set(range(worker.blocks())) - folder.done())
    per_image = max(each + beside / plan.block, reading) if aside else each + beside / plan.block + reading
    return Estimate(len(opened), left, per_image, left * per_image, tuple(opened.notes))


def _asked(
    model: VisionModel | nn.Module,
    data: str | Path | Dataset,
    folder: RunFolder,
    batch_size: int | None,
    data_options: Mapping[str, Any],
    *,
    seed: int = 0,
    **question: Any,
) -> tuple[VisionModel, Opened, EvaluationPlan]:
    """Returns the model, the data and the plan of a run, checked before anything is measured."""
    if not isinstance(model, VisionModel):
        model = wrap(model)
    refuse_training(model.module)
    batch, threads = rows_and_threads(model, folder, batch_size)
    plan = make_plan(batch=batch, threads=threads, seed=seed, **question)
    model = replace(model, preprocess=fitted(model, plan))
    opened = open_data(data, model, seed=seed, **data_options)
    _check(model, opened, plan)
    return model, opened, plan


def _check(model: VisionModel, data: Dataset, plan: EvaluationPlan) -> None:
    """Refuses, before the first image, what would fail for every one."""
    if not len(data):
        raise DataError("the data hold no image, so there is nothing to measure")
    for name in plan.protocols:
        missing = [what for what in find_protocol(name).needs if what not in data.annotations]
        if missing:
            known = ", ".join(sorted(data.annotations)) or "nothing but the pictures"
            raise DataError(
                f"{name} needs {' and '.join(missing)} of an image, and of these data is known: {known}; give boxes=, "
                f"masks= or labels= with the data, or leave {name} out"
            )
    if plan.target == "label" and "label" not in data.annotations:
        raise DataError(
            'target="label" explains the true class, and of no picture is it known: give labels= with the data, or '
            'target="predicted"'
        )
    size = fitted(model, plan).size
    layout = layout_of(model, model.blank())
    if (covered := model.tiled(model.blank()).shape[-2:]) != size:
        raise DataError(
            f"{model.name} pads or cuts its input of {size[1]} x {size[0]} pixels to {covered[1]} x {covered[0]}, so "
            "its patches are not those of the picture: choose an input size that its patches divide"
        )
    output = model.kind_for(model.blank())
    if plan.target == "predicted":
        refuse_unpredicted(output, layout.classes)
    for name, options in plan.protocols.items():
        try:  # its questions refuse what cannot be asked of this model
            cost_of(name, options, size, (layout.rows, layout.cols), output, layout.classes)
        except OutputKindError as error:
            remedy = f'measure the number itself, {name} with score="output"'
            remedy = remedy if "score" in options else "leave it out"
            raise OutputKindError(
                f"{name} watches a probability or a winning class, which an output of kind {output.kind} does not "
                f'have: {remedy}, or declare what the numbers are, as in output="multilabel"'
            ) from error


def _refuse_nothing(run: EvaluationRun) -> None:
    """Raises where a protocol gave no number of any image, which must never pass for a result."""
    empty = run.unmeasured()
    if not empty:
        return
    images = counted(run.manifest["images"], "image")
    said = "; ".join(f"{name} measured nothing on {images} ({reason})" for name, reason in empty.items())
    hints = "".join(f"; {hint}" for word, hint in HINTS.items() if f"no {word}" in said)
    others = [name for name in run.protocols if name not in empty]
    kept = f". What {listed(others)} measured is in {run.folder}" if others else ""
    raise DataError(f"{said}{hints}{kept}")
