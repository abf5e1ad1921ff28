"""`vitrail compare`: the same question asked of many methods, one sheet an image."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show_json, show_table, stages, stop
from vitrail.cli.inputs import Found, OutputNames, destination, find_images, slug
from vitrail.cli.request import FILES, Request, how_to_load, kinds, load_model, split_option
from vitrail.errors import ImageError, OptionError, VitrailError

if TYPE_CHECKING:
    from vitrail.comparison import Comparison
    from vitrail.models import VisionModel

__all__ = ["compare_command", "run", "typed_by_method"]

HEADER = ("image", "method", "passes", "seconds", "signed", "lowest", "highest", "file")


def compare_command(
    images: shared.Images,
    model: shared.ModelName,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="Names, or groups: all, fast, signed, unsigned, class, gradient, patch, pixel; -NAME takes out; "
            "complete:libra asks in a gradient mode. Default: all.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Class by name or index; several (repeat) are rows of the sheet. Default: the predicted class.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Class to compare with; one, or one for each target. Default: none."),
    ] = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: Annotated[
        list[shared.Format] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="KIND",
            help="Kind of file: png, jpg, pdf, svg, safetensors (one per method), or all; several: repeat. "
            "Default: png.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="What is differentiated. Default: logit; with --against difference."),
    ] = None,
    gradient: Annotated[
        shared.Gradient | None,
        typer.Option("--gradient", help="Gradient mode of the methods that use gradients. Default: each method's own."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="METHOD.NAME=VALUE",
            help="An option of one method, as in tam.samples=10; several: repeat.",
        ),
    ] = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Random seed of every method that takes one. Default: each method's own."),
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Draw what each method says of the same question, with the time and the passes that it took.

    Each image becomes OUTPUT/<stem>.compare.<target>.png. A method that fails on this model keeps its place on the
    sheet, empty, gets a line on stderr, and makes the exit code 1.
    """
    words: dict[str, dict[str, Any]] = {}
    for text in option or []:
        name, value = split_option(text, "METHOD.NAME=VALUE, as in tam.samples=10", dotted=True)
        method, _, own = name.partition(".")
        words.setdefault(method, {})[own] = value
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=target or [],
        against=against or [],
        question={
            "methods": methods or ["all"],
            "objective": objective,
            "gradient": gradient and gradient.value,
            "seed": seed,
        },
        options=words,
        load=how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=kinds(format_),
        as_json=as_json,
        seed=seed,
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def run(request: Request) -> bool:
    """Compare the methods on every image; say whether any image or method failed.

    Raises `VitrailError` for a question at fault.
    """
    from vitrail.methods.registry import choose_methods
    from vitrail.objectives import objective_name

    choose_methods(request.question["methods"])
    options = typed_by_method(request.options)
    objective_name(request.question["objective"], request.against or None)
    place = destination(request.output, FILES, request.formats)
    found, missing = find_images(request.images, leave_out=place.leave_out)
    names = OutputNames(place.folder, found, place.file)
    reporter = Reporter(as_json=request.as_json)
    model = load_model(request)
    for argument, error in missing:
        reporter.fail(argument, error)
    formats = place.formats or ("png",)
    results: Iterable[dict[str, Any]] = _results(request, model, options, found, names, formats, reporter)
    if request.as_json:
        asked = {key: value for key, value in request.question.items() if key != "objective"}
        document = {"model": model.name, "metadata": dict(model.metadata), **asked, "options": options}
        document |= {"results": list(results), "failures": reporter.failures}
        show_json(document)
    elif sys.stdout.isatty():
        kept = list(results)
        show_table(HEADER, (row for result in kept for row in _table(result)))
    else:
        show_table(HEADER, (row for result in results for row in _table(result)))
    reporter.say_notes()
    return bool(reporter.failures)


def typed_by_method(words: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Options as words, by method, made into values of the types that the methods' options have.

    Raises `UnknownMethodError` and `OptionError` for what no method, option or value is.
    """
    from vitrail.compare import COMMON
    from vitrail.methods import find_method
    from vitrail.methods.option_values import option_value, typed_options

    defaults: dict[str, Any] = {"gradient": "full", "compete": False, "start_layer": 0, "centred": False}
    typed: dict[str, dict[str, Any]] = {}
    for name, given in words.items():
        info = find_method(name, {})
        own = {key: word for key, word in given.items() if key not in COMMON}
        values = typed_options(info, own)
        for key in COMMON:
            if key in given:
                try:
                    values[key] = option_value(given[key], defaults[key])
                except ValueError as error:
                    raise OptionError(f"{name}.{key}={given[key]}: {key} is {error}") from None
        typed.setdefault(info.name, {}).update(values)
    return typed


def _results(
    request: Request,
    model: "VisionModel",
    options: Mapping[str, Mapping[str, Any]],
    found: Sequence[Found],
    names: OutputNames,
    formats: Sequence[str],
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    from vitrail.compare import compare
    from vitrail.images import read_image

    targets = [model.class_index(name) for name in request.targets] or None
    against = [model.class_index(name) for name in request.against] or None
    for image in found:
        try:
            picture = read_image(image.path)
        except ImageError as error:
            reporter.fail(str(image.path), error)
            continue
        with stages() as report:

            def progress(label: str, done: int, total: int, place: Path = image.path) -> None:
                if not request.as_json:  # whose reader expects no other lines on stderr than failures
                    report(f"{place.name}, {label or 'done'}", done, total)

            try:
                answer = compare(
                    model, picture, targets, against=against, options=options, progress=progress, **request.question
                )
            except ImageError as error:
                reporter.fail(str(image.path), error)
                continue
        for label, why in answer.failures.items():
            reporter.fail(f"{image.path}: {label}", why)
        answer = replace(answer, metadata={**answer.metadata, "sources": [image.path.name]})
        for note in answer.notes():
            reporter.note(str(image.path), note)
        files = _write(answer, image, names, formats)
        yield {"image": str(image.path), **answer.record(), "files": [str(path) for path in files]}


def _write(answer: "Comparison", image: Found, names: OutputNames, formats: Sequence[str]) -> list[Path]:
    from vitrail.plotting import save_figure

    classes = "+".join(slug(answer.sides(row)[0][0]) for row in range(len(answer.target)))
    what = f"compare.{classes if len(classes) <= 100 else f'{len(answer.target)}-classes'}"
    if answer.against is not None:
        what += ".against-" + slug(answer.sides()[1][0])
    pictures = [kind for kind in formats if kind != "safetensors"]
    files = []
    if pictures:
        figure = answer.plot()
        files = [save_figure(figure, names.path(image, what, kind)) for kind in pictures]
    if "safetensors" in formats:
        for one in answer.answers:
            if one.explanation is not None:
                label = one.label.replace(":", "-")
                files.append(one.explanation.save(names.path(image, what, "safetensors", label)))
    return files


def _table(result: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    from vitrail.plotting.canvas import number

    for one in result["methods"]:
        maps = one.get("maps") or []
        lowest, highest = [each["lowest"] for each in maps], [each["highest"] for each in maps]
        said = (number(min(lowest)), number(max(highest))) if maps else ("failed", "")
        signed = "yes" if one["signed"] else "no"
        file = Path(result["files"][0]) if result["files"] else ""
        yield Path(result["image"]), one["label"], one["passes"], f"{one['seconds']:.3g}", signed, *said, file
