"""The work behind `vitrail explain`: check the question, load the model once, explain in batches, write, report."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vitrail.cli.batches import in_batches
from vitrail.cli.console import Reporter, one_line, show_table
from vitrail.cli.explain import Request
from vitrail.cli.inputs import Found, OutputNames, find_images, slug
from vitrail.errors import OptionError, VitrailError
from vitrail.explanation import Explanation, percent
from vitrail.files import writable_folder
from vitrail.render import save_picture
from vitrail.render.lettering import number

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.models import VisionModel

__all__ = ["run"]

HEADER = ("image", "target", "its probability", "against", "and its", "lowest", "highest", "files")


def run(request: Request) -> bool:
    """Explain every image of the request; say whether any failed. Raises `VitrailError` for a question at fault."""
    objective = check_question(request)
    output = writable_folder(request.output)
    reporter = Reporter(as_json=request.as_json)
    found, missing = find_images(request.images, leave_out=output)
    model = load_model(request)
    classes = _classes(request, model)
    for argument, error in missing:
        reporter.fail(argument, error)
    at_the_end = request.as_json or sys.stdout.isatty()  # a table would run into the progress bar
    with reporter.working(len(found)):
        results: Iterable[dict[str, Any]] = _results(request, model, classes, found, reporter)
        if at_the_end:
            results = list(results)
        else:
            show_table(HEADER, map(_row, results))
    if request.as_json:
        asked = {**request.question, "objective": objective, "options": request.options}
        answers = {"results": results, "failures": reporter.failures}
        document = {"model": model.name, "metadata": dict(model.metadata), **asked, **answers}
        typer.echo(json.dumps(document, indent=2, default=str))
    elif at_the_end:
        show_table(HEADER, map(_row, results))
    return bool(reporter.failures)


def check_question(request: Request) -> str:
    """Refuse what needs no model to be refused (unknown methods, options, objectives); return the objective's name.

    Raises `VitrailError`, as `vitrail.explain` would.
    """
    from vitrail.methods import find_method
    from vitrail.objectives import objective_name

    info = find_method(request.question["method"], request.options)
    if request.seed is not None and "seed" in info.options:
        request.options.setdefault("seed", request.seed)
    if len(request.against) > 1 and len(request.targets) > 1 and len(request.against) != len(request.targets):
        raise OptionError(
            f"{len(request.targets)} targets against {len(request.against)} classes; "
            "give one --against, or one for each target"
        )
    return objective_name(request.question["objective"], request.against or None)


def load_model(request: Request) -> "VisionModel":
    """The model of the request, on its device. Raises the errors of `vitrail.load`."""
    import torch

    from vitrail.models import load

    device = request.load["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = getattr(torch, request.load["dtype"])
    others = {"size": request.load["size"], "texts": request.load.get("texts")}
    return load(request.model, checkpoint=request.checkpoint, device=device, dtype=dtype, **others)


def _classes(request: Request, model: "VisionModel") -> tuple[list[int], list[int]]:
    return [model.class_index(name) for name in request.targets], [model.class_index(name) for name in request.against]


def _results(
    request: Request,
    model: "VisionModel",
    classes: tuple[list[int], list[int]],
    found: Sequence[Found],
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    from vitrail.explain import explain
    from vitrail.images import read_image

    targets, against = classes

    def load(image: Found) -> "Image":
        return read_image(image.path)

    def ask(images: list[Found], pictures: "list[Image]") -> Explanation:
        ex = explain(
            model,
            pictures,
            _each(targets, against, len(pictures)),
            against=_each(against, targets, len(pictures)),
            **request.question,
            **request.options,
        )
        return replace(ex, metadata={**ex.metadata, "sources": [image.path.name for image in images]})

    def failed(image: Found, error: Exception) -> None:
        reporter.fail(str(image.path), error)
        reporter.advance()

    names = OutputNames(request.output, found)
    for image, ex in in_batches(found, load, ask, size=request.batch_size, failed=failed):
        try:
            files = _write(ex, image, names, request.formats)
        except VitrailError as error:
            failed(image, error)
            continue
        if not request.as_json:
            for note in ex.notes():
                reporter.say(f"{one_line(str(image.path))}: {note}")
        yield from _rows(ex, image, files)
        reporter.advance()


def _each(classes: list[int], others: list[int], images: int) -> Any:
    """The same question for every image: None, one class each, or (where there are several) a list for each."""
    if not classes:
        return None
    return [classes] * images if max(len(classes), len(others)) > 1 else classes * images


def _write(ex: Explanation, image: Found, names: OutputNames, formats: Sequence[str]) -> list[Path]:
    sides = [ex.sides(target=j) for j in range(ex.targets)]
    what = _joined([slug(side[0][0]) for side in sides])
    if ex.against is not None:
        what += ".against-" + _joined([slug(side[1][0]) for side in sides])
    files = []
    for kind in formats:
        path = names.path(image, what, kind)
        files.append(ex.save(path) if kind == "safetensors" else save_picture(ex, path))
    return files


def _joined(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    whole = "+".join(names)
    return whole if len(whole.encode()) <= 100 else f"{names[0]}+{len(names) - 1}-more"


def _rows(ex: Explanation, image: Found, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    nested = ex.scores.ndim == 4
    for j in range(ex.targets):
        row: dict[str, Any] = {"image": str(image.path)}
        for role, classes in (("target", ex.target), ("against", ex.against)):
            if classes is not None:
                index = int(classes[0, j] if nested else classes[0])
                row |= {
                    role: ex.class_name(index),
                    f"{role}_index": index,
                    f"{role}_probability": ex.probability(index),
                }
        scores = ex.map(target=j)
        row |= {
            "lowest": scores.min().item(),
            "highest": scores.max().item(),
            "files": [str(path) for path in files],
            "notes": ex.notes(),
        }
        yield row


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    sides = []
    for role in ("target", "against"):
        sides += [row[role], percent(row[f"{role}_probability"])] if role in row else ["", ""]
    return row["image"], *sides, number(row["lowest"]), number(row["highest"]), ", ".join(row["files"])
