"""audit(): finds labels that are probably wrong, and class pairs whose training labels probably were."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import DataError, OptionError, OutputKindError
from ..methods import find_method
from ..models import VisionModel, wrap
from ..models.readiness import refuse_training
from ..outputs import Output
from .class_pairs import sign_tests, typical_share
from .duplicates import check_imagehash
from .examine import Answers, Findings, examine
from .label_scores import check_cleanlab
from .result import Audit, read_audit, write_audit

if TYPE_CHECKING:
    from ..datasets import Dataset

__all__ = ["audit"]

Report = Callable[[str, int, int], None]


def audit(
    model: VisionModel | nn.Module,
    data: "str | Path | Dataset",
    *,
    output: str | os.PathLike[str],
    method: str = "complete",
    suspects: int = 500,
    pairs: int | Sequence[tuple[int | str, int | str]] = 50,
    pair_images: int = 24,
    typical: int = 6,
    folds: int | None = None,
    data_options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    seed: int = 0,
    block: int = 16,
    batch_size: int | None = None,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> Audit:
    """Finds labels of a data set that are probably wrong, and class pairs whose training labels probably were.

    The model answers every image once. Labels are ranked by the margin, and cleanlab's confident learning marks those
    it finds wrong; of each suspect the map of the given class, of the suggested one, and of one against the other are
    drawn. For confusable pairs of classes the maps tell whether what is typical of one speaks for the other (see
    `vitrail.audit.class_pairs`). An interrupted audit resumes. `vitrail audit --review OUTPUT` opens the page on which
    one works through the suspects.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped. Its output must be classes or labels.
        data: as `vitrail.evaluate` takes them, with `data_options`; the labels are what is audited.
        output: the folder of the audit.
        method: the method of the maps, one that tells classes apart.
        suspects: the largest number of images to review.
        pairs: number of class pairs that are tested, the most confusable ones; or the pairs (shown, other) themselves,
            by index or name. None are for a multi-label model.
        pair_images: the largest number of images that a pair is tested on.
        typical: number of typical images of each class.
        folds: number of folds for out-of-sample probabilities, by a linear classifier on the model's features; for
            data that the model was trained on. Default: the model's own probabilities.
        limit: the largest number of images, evenly over the classes.
        seed: random seed of the images that pairs are tested on, of folds and of `limit`.
        block: images that are done and written together; a killed audit loses one block's work at most.
        batch_size: rows in one pass; default: chosen for the device, and as before where an audit resumes.
        engine: "local" (shared among the processes of torchrun, where it has started this one) or "ray".
        engine_options: options of the engine.
        progress: called with (what is being done, images done, images in all).

    Returns:
        An `Audit`: `suspects`, `pairs`, `duplicates`, all images as `ranked`, and the maps.

    Raises:
        OptionError: for options out of range, or where cleanlab or imagehash is missing.
        DataError: for data without labels.
        OutputKindError: for a model whose output is neither classes nor labels.
        RunFolderError, RunFolderInUseError: when `output` holds another audit, or another process writes there.
        VitrailError: others, as `vitrail.evaluate` raises them.

    Example:
        >>> import tempfile, vitrail
        >>> model = vitrail.load("bestiary")
        >>> found = vitrail.audit(model, "bestiary:single:8", output=tempfile.mkdtemp(), pairs=2, pair_images=2)
        >>> len(found.ranked), found.ranked[0].margin <= found.ranked[1].margin
        (8, True)
    """
    # Late, as an import of the package's public names shall not wait for them.
    from ..datasets import open_data
    from ..datasets.base import Opened
    from ..evaluate.engines import agreed, find_engine, local_rank, measure_missing, rows_and_threads, together
    from ..evaluate.manifest import manifest_of
    from ..evaluate.run_directory import RunFolder
    from ..models.layout import layout_of
    from .passes import AnswerPass, AuditPlan, MapPass

    find_engine(engine)
    check_cleanlab()
    check_imagehash()
    _check_counts(suspects=(suspects, 0), pair_images=(pair_images, 1), typical=(typical, 0))
    if not find_method(method, {}).class_specific:
        raise OptionError(f"{method} is the same for every class: an audit needs a method that tells them apart")
    if not isinstance(model, VisionModel):
        model = wrap(model)
    refuse_training(model.module)
    folder = Path(output)
    shared: dict[str, Any] = {"engine": engine, "engine_options": engine_options}
    with together():
        answers_in = RunFolder(folder / "answers")
        batch, threads = rows_and_threads(model, answers_in, batch_size)
        plan = AuditPlan(
            classes=layout_of(model, model.blank()).classes, seed=seed, block=block, batch=batch, threads=threads
        )
        kind = _kind(model)
        opened = open_data(data, model, seed=seed, **{"limit": limit, **(data_options or {})})
        if not len(opened) or "label" not in opened.annotations:
            raise DataError("the labels are what is audited, and these data have none: give labels= with them")
        asked = _indices(model, pairs)
        manifest = manifest_of(model, opened, plan, audit="answers")
        measure_missing(AnswerPass(model, opened, plan), answers_in, manifest, progress=_stage(progress, 0), **shared)
        answers = read_answers(answers_in.path)
        probabilities = kind.probabilities(torch.from_numpy(answers.logits).double()).numpy()
        found = examine(
            answers,
            probabilities,
            exclusive=kind.link == "softmax",
            suspects=suspects,
            pairs=asked,
            pair_images=pair_images,
            typical=typical,
            folds=folds,
            seed=seed,
        )
        plan = replace(plan, method=method, wanted=found.wanted)
        name = f"maps/{hashlib.sha256(json.dumps(asdict(plan)).encode()).hexdigest()[:12]}"
        if found.wanted:
            chosen = Opened(opened, [one.image for one in found.wanted], opened.arguments)
            drawn = {**manifest_of(model, chosen, plan, audit="maps"), "plan": {"wanted": name, "method": method}}
            worker = MapPass(model, chosen, plan)
            measure_missing(worker, RunFolder(folder / name), drawn, progress=_stage(progress, 1), **shared)
        if not local_rank():  # the first process writes for all
            about = {
                "model": model.name,
                "class_names": None if model.class_names is None else list(model.class_names),
                "classes": plan.classes,
                "output": kind.kind,
                "data": opened.arguments["spec"],
                "images": len(opened),
                "method": method,
                "folds": folds,
                "suspects": found.suspects,
                "maps": name,
            }
            untested = [pair for pair in asked if pair not in found.pairs] if isinstance(asked, list) else []
            notes = [
                f"not tested, since no image is labelled {one}: {one} against {other}"
                for one, other in (map(model.class_name, pair) for pair in untested)
            ]
            _write(folder, found, answers, about, [*opened.notes, *notes])
        agreed(None)  # the others wait for it
    return read_audit(folder)


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (count, least) in counts.items():
        if count < least:
            raise OptionError(f"{name}={count} must be {least} or more")


def _kind(model: VisionModel) -> Output:
    """Returns the kind of the model's output, one that has probabilities."""
    kind = model.kind_for(model.blank())
    if kind.link is None:
        raise OutputKindError(
            f"{model.name} gives {kind.kind}, and labels can be audited with classes or labels alone: if the numbers "
            'are logits after all, declare output="logits" or output="multilabel"'
        )
    return kind


def _indices(model: VisionModel, pairs: int | Sequence[tuple[int | str, int | str]]) -> int | list[tuple[int, int]]:
    """Returns the pairs by index."""
    if isinstance(pairs, int):
        _check_counts(pairs=(pairs, 0))
        return pairs
    found = []
    for pair in pairs:
        shown, other = (model.class_index(one) for one in pair)
        if shown == other:
            raise OptionError(f"the pair {tuple(pair)} names one class twice")
        found.append((shown, other))
    return found


def _stage(progress: Report | None, number: int) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    said = ("answers", "maps")[number]
    return lambda done, total: progress(said, done, total)


def read_answers(folder: Path) -> Answers:
    """Returns what the first pass wrote, in the order of the images."""
    from ..evaluate.parquet_rows import block_name
    from ..evaluate.run_directory import MAPS, ROWS, RunFolder
    from .passes import decoded_rows

    images, sources, labels, hashes, failures = [], [], [], [], []
    logits, features = [], []
    for block in sorted(RunFolder(folder).done()):
        for row in decoded_rows(folder / ROWS / f"{block_name(block)}.parquet"):
            if row["failure"]:
                failures.append((row["image"], row["source"], row["failure"]))
                continue
            images.append(row["image"])
            sources.append(row["source"])
            labels.append(tuple(row["labels"]))
            hashes.append(row["hash"])
        tensors = load_file(folder / MAPS / f"{block_name(block)}.safetensors")
        if tensors:
            logits.append(tensors["logits"].numpy())
            features.append(tensors["features"].numpy())
    if not images:
        reason = failures[0][2] if failures else "there is no image"
        raise DataError(f"none of the {len(failures)} images could be audited; the first: {reason}")
    told = np.concatenate(logits)
    beyond = sorted({index for own in labels for index in own if not 0 <= index < told.shape[1]})
    if beyond:
        raise DataError(f"the data name class {beyond[0]}, and the model has {told.shape[1]} classes")
    return Answers(
        images=np.array(images, dtype=np.int64),
        sources=tuple(sources),
        labels=tuple(labels),
        hashes=np.array(hashes, dtype=np.uint64),
        logits=told,
        features=np.concatenate(features),
        failures=tuple(failures),
    )


def _write(folder: Path, found: Findings, answers: Answers, about: Mapping[str, Any], notes: Sequence[str]) -> None:
    from ..datasets.label_resolver import counted
    from ..evaluate.parquet_rows import block_name
    from ..evaluate.run_directory import ROWS, RunFolder
    from .passes import decoded_rows

    drawn = Audit(folder, found.ranked, (), {}, {}, about, ())
    balances: dict[tuple[int, int], list[float]] = {}
    for (shown, other), images in found.pairs.items():
        for image in images:
            single, contrast = drawn.map(image, shown, typical=True), drawn.map(image, shown, other)
            if single is not None and contrast is not None:
                balances.setdefault((shown, other), []).append(typical_share(single, contrast))
    unread = [f"not read: {source} ({reason})" for _, source, reason in answers.failures]
    if unread:
        unread.insert(0, f"{counted(len(unread), 'image')} could not be audited")
    maps = folder / about["maps"]
    blocks = sorted(RunFolder(maps).done()) if found.wanted else []
    rows = [row for block in blocks for row in decoded_rows(maps / ROWS / f"{block_name(block)}.parquet")]
    undrawn = [f"no map: {row['map'] or row['image']} ({row['failure']})" for row in rows]
    unknown = about["images"] - len(answers.failures) - len(found.ranked)
    told = [f"of no known class, so not audited: {counted(unknown, 'image')}"] if unknown else []
    if about["output"] == "multilabel" or not found.pairs:
        told.append("no pair of classes was tested")
    pairs = sign_tests(balances, found.margins, found.joint)
    write_audit(folder, found.ranked, pairs, found.pairs, found.typical, about, [*notes, *told, *unread, *undrawn])
