"""`vitrail compare`: maps of many methods for the same target, one sheet per image."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stages
from vitrail.cli.image_run import ImageRun, Request, load_model
from vitrail.cli.inputs import Found, slug
from vitrail.errors import ImageError, OptionError

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
            help="Methods by name or group (all, fast, signed, unsigned, class, gradient, patch, pixel); -NAME "
            "excludes one, complete:libra sets the gradient mode. Default: all.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Class to explain, by name or index; repeat for more rows of the sheet. Default: the predicted class.",
        ),
    ] = None,
    against: shared.Against = None,
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
            help="File format: png, jpg, pdf, svg, safetensors (one per method), or all; repeat for several. "
            "Default: png.",
        ),
    ] = None,
    objective: shared.Objective = None,
    gradient: Annotated[
        shared.Gradient | None,
        typer.Option(
            "--gradient",
            help="Gradient mode (full, leaf, libra, gim) of methods that use gradients. Default: each method's own.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="METHOD.NAME=VALUE",
            help="Option of one method, as in tam.samples=10; repeat for several.",
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
) -> bool:
    """Draw the maps of many methods for the same target, with the time and the passes that each took.

    Each image becomes a sheet, OUTPUT/<stem>.compare.<target>.png. A method that fails on this model leaves its place
    on the sheet empty, is reported on stderr, and sets exit code 1.
    """
    words = shared.split_options(option, "METHOD.NAME=VALUE, as in tam.samples=10")
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=target or [],
        against=against or [],
        question={
            "methods": methods or ["all"],
            "objective": objective,
            "gradient": gradient and str(gradient),
            "seed": seed,
        },
        options=words,
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=seed,
    )
    return run(request)


def run(request: Request) -> bool:
    """Compares the methods on every image of the request; returns whether any image or method failed.

    Raises `VitrailError` for a faulty question.
    """
    from vitrail.methods.registry import choose_methods
    from vitrail.objectives import objective_name

    choose_methods(request.question["methods"])
    options = typed_by_method(request.options)
    objective_name(request.question["objective"], request.against or None)
    images = ImageRun.of(request)
    model = load_model(request)
    asked = {key: value for key, value in request.question.items() if key != "objective"} | {"options": options}
    return images.report(model, _results(images, model, options), HEADER, _table, lambda _: asked, bar=False)


def typed_by_method(words: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Converts options, by method, from words to the types that the methods declare.

    Raises `UnknownMethodError` for an unknown method, and `OptionError` for an unknown option or an unsuitable value.
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
    run: ImageRun, model: "VisionModel", options: Mapping[str, Mapping[str, Any]]
) -> Generator[dict[str, Any], None, None]:
    from vitrail.compare import compare
    from vitrail.images import read_image

    request, reporter = run.request, run.reporter
    targets = [model.class_index(name) for name in request.targets] or None
    against = [model.class_index(name) for name in request.against] or None
    for image in run.found:
        try:
            picture = read_image(image.path)
        except ImageError as error:
            run.failed(image, error)
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
                run.failed(image, error)
                continue
        for label, why in answer.failures.items():
            reporter.fail(f"{image.path}: {label}", why)
        answer = replace(answer, provenance=replace(answer.provenance, sources=(image.path.name,)))
        for note in answer.notes():
            reporter.note(str(image.path), note)
        files = _write(answer, image, run)
        yield {"image": str(image.path), **answer.record(), "files": [str(path) for path in files]}
        reporter.advance()


def _write(answer: "Comparison", image: Found, run: ImageRun) -> list[Path]:
    from vitrail.plotting import save_figure

    classes = "+".join(slug(answer.sides(row)[0][0]) for row in range(len(answer.target)))
    what = f"compare.{classes if len(classes) <= 100 else f'{len(answer.target)}-classes'}"
    if answer.against is not None:
        what += ".against-" + slug(answer.sides()[1][0])
    pictures = [kind for kind in run.formats if kind != "safetensors"]
    files = []
    if pictures:
        figure = answer.plot()
        files = [save_figure(figure, run.names.path(image, what, kind)) for kind in pictures]
    if "safetensors" in run.formats:
        for one in answer.answers:
            if one.explanation is not None:
                label = one.label.replace(":", "-")
                files.append(one.explanation.save(run.names.path(image, what, "safetensors", label)))
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
