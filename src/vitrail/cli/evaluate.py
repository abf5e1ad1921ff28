"""`vitrail evaluate`: methods measured by protocols on a data set, into a folder that a later run completes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli import runs
from vitrail.cli.console import Terminal, message_of, progress_of, resumable, show, show_json, show_result
from vitrail.cli.image_run import load_named
from vitrail.errors import OptionError

if TYPE_CHECKING:
    from vitrail.evaluate.parquet_rows import Failure
    from vitrail.evaluate.runner import Estimate

__all__ = ["evaluate_command", "run"]


def evaluate_command(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="Data set: a folder, a list file, hf:NAME, mosaic:DATA, stitched:DATA, or bestiary."
        ),
    ] = None,
    model: shared.OptionalModelName = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="Methods by name or group (all, fast, signed …); -NAME excludes one, complete:libra sets the gradient "
            "mode. Default: complete.",
        ),
    ] = None,
    protocols: Annotated[
        list[str] | None,
        typer.Option("--protocols", help="Protocols by name, as --list shows them. Default: those of the preset."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Protocols and options of a paper: bi, chefer, rise, tis or seed. Default: bi."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME.OPTION=VALUE",
            help="Option of a method or protocol, as in tis.masks=256; repeat for several.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Class that is explained: label or predicted. Default: the preset's."),
    ] = None,
    resize_mode: Annotated[
        str | None,
        typer.Option(
            "--resize-mode",
            help="model: the model's preprocessing; squash: the whole image, without a crop. Default: the preset's.",
        ),
    ] = None,
    boxes: runs.Boxes = None,
    labels: runs.Labels = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Folder of segmentation masks. Default: those of the data set.")
    ] = None,
    category: Annotated[
        int | None, typer.Option("--category", help="Mask value of the object. Default: all values but 0.")
    ] = None,
    guide: Annotated[
        str | None, typer.Option("--guide", help="Image that stitched: joins to each image. Default: none.")
    ] = None,
    limit: shared.Limit = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the run.")] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the run, created if missing; an interrupted run in it is resumed."
        ),
    ] = Path("run"),
    block_size: runs.BlockSize = 16,
    batch_size: runs.BatchSize = None,
    num_previews: Annotated[
        int, typer.Option("--num-previews", min=0, help="Number of images whose maps are stored for the report.")
    ] = 500,
    engine: runs.Engine = "local",
    address: runs.Address = None,
    workers: runs.Workers = None,
    gpus: runs.Gpus = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    plan: Annotated[
        bool, typer.Option("--plan", help="Measure a few images, estimate the time of the run, and stop.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the protocols and presets, and stop.")] = False,
    as_json: shared.AsJson = False,
) -> bool:
    """Measure methods by protocols of faithfulness, localisation, robustness and randomisation, into Parquet files.

    The same command resumes an interrupted run. `vitrail report OUTPUT` makes tables and figures of its results.
    """
    if list_:
        _list(as_json)
        return False
    if not data or not model:
        raise typer.BadParameter("give DATA and --model (or VITRAIL_MODEL), or --list", param_hint="DATA")
    words = shared.split_options(option, "NAME.OPTION=VALUE, as in tis.masks=256")
    asked = [name for text in protocols or [] for name in text.split(",") if name]
    known: dict[str, Any] = {"boxes": boxes, "labels": labels, "masks": masks, "guide": guide, "category": category}
    cluster = runs.cluster_options(engine, address, workers, gpus)
    if protocols and not asked:
        raise OptionError("--protocols names none: give names that --list shows, or leave it out for the preset's")
    return run(
        data,
        model,
        checkpoint,
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        words=words,
        as_json=as_json,
        only_plan=plan,
        question={
            "methods": methods or ["complete"],
            "protocols": asked,
            "preset": preset,
            "target": target,
            "fit": resize_mode,
            "data_options": {key: value for key, value in known.items() if value is not None},
            "limit": limit,
            "seed": seed,
            "output": output,
            "block": block_size,
            "batch_size": batch_size,
            "keep": num_previews,
            "engine": engine,
            "engine_options": cluster,
        },
    )


def _list(as_json: bool) -> None:
    from vitrail.evaluate.plan import PRESETS
    from vitrail.metrics import list_protocols

    found = [
        {
            "protocol": info.name,
            "needs": list(info.needs),
            "options": {name: str(value) for name, value in info.options.items()},
            "measures": info.summary,
            "presets": [name for name, preset in PRESETS.items() if info.name in preset.protocols],
        }
        for info in list_protocols()
    ]
    rows = [
        (
            one["protocol"],
            ", ".join(one["needs"]),
            ", ".join(one["presets"]),
            ", ".join(f"{name}={value}" for name, value in one["options"].items()),
            one["measures"],
        )
        for one in found
    ]
    show_result(found, ("protocol", "needs", "presets", "options", "measures"), rows, as_json=as_json, fold=True)


def run(
    data: str,
    model: str,
    checkpoint: Path | None,
    *,
    load: Mapping[str, Any],
    words: Mapping[str, Mapping[str, str]],
    question: Mapping[str, Any],
    as_json: bool,
    only_plan: bool = False,
) -> bool:
    """Runs, resumes or plans the evaluation; returns whether something could not be measured."""
    from vitrail.evaluate.engines import local_rank
    from vitrail.evaluate.run_reader import read_run
    from vitrail.evaluate.runner import estimate, evaluate

    rank = local_rank()
    methods, protocols = _options(words)
    vision = load_named(model, checkpoint, **runs.on_own_device(load, rank))
    question = dict(question) | {"method_options": methods, "protocol_options": protocols}
    if only_plan:
        question = {key: value for key, value in question.items() if key not in ("engine", "engine_options")}
        _show_plan(estimate(vision, data, **question), as_json)
        return False
    console = Terminal(stderr=True, quiet=bool(rank))
    with progress_of(console) as report, resumable(question["output"], report, console) as follow:
        outcome = evaluate(vision, data, **question, progress=follow)
    if rank:  # the first process speaks for all
        return False
    found = read_run(outcome.folder)
    failures = [failure for failure in found.failures if not _unknown(failure)]
    if as_json:
        document = {
            "output": str(outcome.folder),
            "images": outcome.images,
            "measured": outcome.measured,
            "rows": len(found.rows),
            "failures": len(failures),
            "unknown": len(found.failures) - len(failures),  # what the data do not tell of an image
            "notes": list(outcome.notes),
        }
        show_json(document)
        return bool(failures)
    left_out = Counter(
        {
            (one.image, one.protocol, one.reason): (one.protocol, one.reason) for one in found.failures if _unknown(one)
        }.values()
    )
    less = [f"{name} leaves out {count} of {outcome.images} images: {why}" for (name, why), count in left_out.items()]
    for note in (*outcome.notes, *less):
        show(f"note: {note}", err=True)
    for failure in failures[:10]:
        where = " ".join(word for word in (failure.source, failure.method, failure.protocol) if word)
        # Most reasons begin with the file's path, of which the line has what matters.
        folder, found_it, rest = failure.reason.partition(failure.source)
        reason = rest.lstrip(" :") if found_it and " " not in folder else failure.reason
        show(f"{where}: {message_of(reason)}", err=True)
    if len(failures) > 10:
        show(f"… and {len(failures) - 10} failures more, all of them in the report", err=True)
    already = outcome.images - outcome.measured
    show(
        f"{outcome.measured} images measured" + (f", {already} were there already" if already else "") + f": "
        f"{len(found.rows)} rows in {outcome.folder}; vitrail report {outcome.folder} shows them"
    )
    return bool(failures)


def _show_plan(found: "Estimate", as_json: bool) -> None:
    from vitrail.cli.estimate import duration

    for note in () if as_json else found.notes:
        show(f"note: {note}", err=True)
    there = f", {found.images - found.left} are there already" if found.left < found.images else ""
    rows = [
        ("images", f"{found.images}{there}"),
        ("time", f"{found.seconds_per_image:.3g} s an image, {duration(found.seconds)} in one process"),
    ]
    show_result(asdict(found), ("what", "how much"), rows, as_json=as_json)


def _unknown(failure: "Failure") -> bool:
    """Returns whether the data set lacks the annotation that a protocol needs, which is no failure of the run."""
    return failure.method is not None and failure.reason.startswith("no ")


def _options(words: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Returns the options of methods and those of protocols, converted to their types."""
    from vitrail.methods import METHODS, find_method
    from vitrail.methods.option_values import typed, typed_options
    from vitrail.metrics import PROTOCOLS, find_protocol

    methods: dict[str, dict[str, Any]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    for name, own in words.items():
        if name in PROTOCOLS:
            info = find_protocol(name, dict(own))
            protocols[name] = typed(info.function, own, f"protocol {name!r}")
        elif name in METHODS:
            methods[name] = typed_options(find_method(name, {}), own)
        else:
            raise OptionError(f"{name} is neither a method nor a protocol, so --option {name}.… means nothing")
    return methods, protocols
