"""The work behind `vitrail compare`: methods and their options read, each image asked of all, sheets and figures."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.console import Reporter, show_json, show_table, stages
from vitrail.cli.explain import Request
from vitrail.cli.explaining import FILES, load_model
from vitrail.cli.inputs import Found, OutputNames, destination, find_images, slug
from vitrail.errors import ImageError, OptionError

if TYPE_CHECKING:
    from vitrail.comparison import Comparison
    from vitrail.models import VisionModel

__all__ = ["run", "typed_by_method"]

HEADER = ("image", "method", "passes", "seconds", "signed", "lowest", "highest", "file")


def run(request: Request) -> bool:
    """Compare the methods on every image; say whether any image or method failed.

    Raises `VitrailError` for a question at fault.
    """
    from vitrail.methods.choosing import choose_methods
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
    from vitrail.plotting.lettering import number

    for one in result["methods"]:
        maps = one.get("maps") or []
        lowest, highest = [each["lowest"] for each in maps], [each["highest"] for each in maps]
        said = (number(min(lowest)), number(max(highest))) if maps else ("failed", "")
        signed = "yes" if one["signed"] else "no"
        file = Path(result["files"][0]) if result["files"] else ""
        yield Path(result["image"]), one["label"], one["passes"], f"{one['seconds']:.3g}", signed, *said, file
