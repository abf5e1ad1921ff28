"""`vitrail reproduce`: the paper's experiments on given images and model."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show_json, show_table, stages, stop
from vitrail.cli.request import Request, how_to_load

__all__ = ["reproduce_command"]


def reproduce_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="What --list shows: gradients, fig9, …")] = None,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns.")
    ] = None,
    model: shared.OptionalModelName = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="Class by name or index; several: repeat. Default: the predicted class."),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Classes to compare with. Default: the model's next best.")
    ] = None,
    typical: Annotated[
        Path | None,
        typer.Option("--typical", help="Folder of typical pictures of the opposing class, or one per class."),
    ] = None,
    guide: Annotated[
        str | None, typer.Option("--guide", help="Picture of another class. Default: auto, which the model draws.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", help="Names or groups, as for `vitrail compare`. Default: see --list."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV table of files and classes. Default: by folder or file name.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Largest number of images, taken evenly over the classes. Default: all."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of the attention transfer. Default: 50.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate of the transfer. Default: 0.0004.")] = None,
    until: Annotated[
        float | None, typer.Option("--until", help="Probability at which rewriting stops. Default: 0.938.")
    ] = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.FolderOutput = shared.DEFAULT_OUTPUT,
    format_: Annotated[shared.Figure, typer.Option("--format", "-f", help="Kind of figure.")] = shared.Figure.png,
    gradient: shared.GradientMode = shared.Gradient.full,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    list_: Annotated[bool, typer.Option("--list", help="List the experiments and what they need, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Draw an experiment of the paper on your own images and model, and write its numbers beside the pictures.

    OUTPUT gets the pictures and NAME.json. Images come before --against and --methods.
    """
    from vitrail.errors import VitrailError

    if list_:
        _list(as_json)
        return
    try:
        name, images, model = _complete(name, images, model)
    except VitrailError as error:
        stop(error, as_json=as_json)
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=target or [],
        against=against or [],
        question={"gradient": gradient.value},
        options={},
        load=how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=(format_.value,),
        as_json=as_json,
        seed=None,
    )
    try:
        extras = {"guide": guide, "methods": tuple(methods or ()), "labels": labels, "limit": limit}
        extras |= {"steps": steps, "lr": lr, "until": until, "typical": typical}
        failed = _run(name, request, {key: value for key, value in extras.items() if value not in (None, ())})
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def _complete(name: str | None, images: list[str] | None, model: str | None) -> tuple[str, list[str], str]:
    """The three that no experiment can do without. Raises `ExperimentError`, saying what this one needs."""
    from vitrail.errors import ExperimentError

    if name is None:
        raise ExperimentError("say which experiment, as in `vitrail reproduce fig9`; --list shows all of them")
    from vitrail.experiments import find_experiment  # which needs PyTorch

    experiment = find_experiment(name)
    if images and model:
        return name, images, model
    called = experiment.name if experiment.name == name else f"{name} ({experiment.name})"
    lacking = " and ".join(word for word, given in (("IMAGE...", images), ("--model", model)) if not given)
    raise ExperimentError(f"{called} needs {experiment.wants}; and --model, or VITRAIL_MODEL. Not given: {lacking}")


def _list(as_json: bool) -> None:
    from vitrail.experiments import EXPERIMENTS

    found = [
        {"name": one.name, "figure": one.figure, "needs": one.wants, "shows": one.summary}
        for one in EXPERIMENTS.values()
    ]
    if as_json:
        show_json(found)
        return
    rows = [
        (one["name"], f"Fig. {one['figure']}" if one["figure"] else "", one["needs"], one["shows"]) for one in found
    ]
    show_table(("name", "in the paper", "needs", "shows"), rows, fold=True)


def _run(name: str, request: Request, extras: dict[str, Any]) -> bool:
    from vitrail.cli.inputs import destination, find_images
    from vitrail.cli.request import load_model
    from vitrail.errors import OptionError
    from vitrail.experiments import Question, find_experiment
    from vitrail.files import atomic_write

    experiment = find_experiment(name)
    foreign = [f"--{key}" for key in extras if key not in experiment.takes]
    if foreign:
        takes = ", ".join(f"--{key}" for key in experiment.takes) or "none of its own"
        raise OptionError(f"{', '.join(foreign)} means nothing to {experiment.name}; its own options: {takes}")
    if extras.get("guide", "auto") != "auto":
        _read_guide(extras["guide"])
    output = destination(request.output).folder
    found, missing = find_images(request.images, leave_out=output)
    reporter = Reporter(as_json=request.as_json)
    for argument, error in missing:
        reporter.fail(argument, error)
    readable = list(_readable([image.path for image in found], reporter))
    if not readable:
        return True
    model = load_model(request)
    question = Question(
        model=model,
        images=tuple(readable),
        output=output,
        targets=tuple(model.class_index(one) for one in request.targets),
        against=tuple(model.class_index(one) for one in request.against),
        format=request.formats[0],
        options=dict(request.question),
        **extras,
    )
    with stages() as report:
        results = experiment.function(replace(question, report=report))
    about = {"experiment": experiment.name, "figure": experiment.figure, "model": model.name}
    document: dict[str, Any] = {**about, "metadata": dict(model.metadata), **request.question, "results": results}
    with atomic_write(output / f"{experiment.name}.json") as file:
        file.write(json.dumps(document, indent=2, default=str).encode())
    if request.as_json:
        show_json(document)
    else:
        show_table(("file",), [(Path(result["file"]),) for result in results])
    return bool(reporter.failures)


def _read_guide(guide: str) -> None:
    """Refuse a guide that is no picture before the work. Raises `ImageError`."""
    from vitrail.images import read_image

    if not Path(guide).is_dir():
        read_image(Path(guide))


def _readable(paths: list[Path], reporter: Reporter) -> Iterator[Path]:
    """The images that can be opened: an experiment draws several together, and one must not spoil the rest."""
    from vitrail.errors import ImageError
    from vitrail.images import read_image

    for path in paths:
        try:
            read_image(path)
        except ImageError as error:
            reporter.fail(str(path), error)
        else:
            yield path
