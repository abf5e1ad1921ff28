"""The work behind `vitrail explain`: check the question, load the model once, explain in batches, write, report."""

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vitrail.cli.ahead import in_threads
from vitrail.cli.batches import in_batches
from vitrail.cli.console import Reporter, show_json, show_table
from vitrail.cli.explain import Request
from vitrail.cli.inputs import OVERLAY, Found, OutputNames, destination, find_images, slug
from vitrail.cli.loading import load_named
from vitrail.errors import OptionError, SameClassError, VitrailError
from vitrail.explanation import Explanation, verdict_of
from vitrail.plotting import save_light, save_picture
from vitrail.plotting.lettering import number

if TYPE_CHECKING:
    from vitrail.inputs import Prepared
    from vitrail.models import VisionModel

__all__ = [
    "FILES",
    "check_question",
    "classes_of",
    "formats_of",
    "images_at_once",
    "load_model",
    "passes_at_once",
    "results",
    "run",
]

MANY = 100  # images, from which on a figure of each would take longer and more room than anybody wants
AT_ONCE = {"cpu": 8}  # images; a CPU is quickest while the activations stay in its cache
AT_ONCE_ELSEWHERE = 64

FILES = ("png", "jpg", "pdf", "svg", "safetensors")  # what a single result can be
SAVERS: dict[str, Any] = {"safetensors": Explanation.save, OVERLAY: save_light}

HEADER = ("image", "target", "its probability", "against", "and its", "lowest", "highest", "files")


def run(request: Request) -> bool:
    """Explain every image of the request; say whether any failed. Raises `VitrailError` for a question at fault."""
    objective = check_question(request)
    place = destination(request.output, FILES, request.formats)
    reporter = Reporter(as_json=request.as_json)
    found, missing = find_images(request.images, leave_out=place.leave_out)
    names = OutputNames(place.folder, found, place.file)
    model = load_model(request)
    classes = classes_of(request, model)
    formats = formats_of(place.formats, len(found))
    if not place.formats and len(found) > MANY:
        kinds = "small overlays (.jpg) and maps (.safetensors)"
        reporter.say(f"{len(found)} images: {kinds} are written; --format png draws each a figure")
    for argument, error in missing:
        reporter.fail(argument, error)
    at_the_end = request.as_json or sys.stdout.isatty()  # a table would run into the progress bar
    each = results(request, model, classes, found, names, formats, reporter)
    rows: Iterable[dict[str, Any]] = each
    try:
        with reporter.working(len(found)), closing(each):
            if at_the_end:
                rows = list(rows)
            else:
                show_table(HEADER, map(_row, rows))
    except KeyboardInterrupt:
        reporter.say(f"interrupted after {reporter.done} of {len(found)} images: every file in {place.folder} is whole")
        raise typer.Exit(130) from None
    if request.as_json:
        asked = {**request.question, "objective": objective, "options": request.options}
        answers = {"results": rows, "failures": reporter.failures}
        document = {"model": model.name, "metadata": dict(model.metadata), **asked, **answers}
        show_json(document)
    elif at_the_end:
        show_table(HEADER, map(_row, rows))
    return bool(reporter.failures)


def check_question(request: Request) -> str:
    """Refuse what needs no model to be refused (unknown methods, options, objectives); return the objective's name.

    Raises `VitrailError`, as `vitrail.explain` would.
    """
    from vitrail.methods import find_method
    from vitrail.methods.option_values import typed_options
    from vitrail.objectives import objective_name

    info = find_method(request.question["method"], request.options)
    request.options.update(typed_options(info, request.options))
    if request.seed is not None and "seed" in info.options:
        request.options.setdefault("seed", request.seed)
    if len(request.against) > 1 and len(request.targets) > 1 and len(request.against) != len(request.targets):
        raise OptionError(
            f"{len(request.targets)} targets against {len(request.against)} classes; "
            "give one --against, or one for each target"
        )
    objective = request.question["objective"] or info.default_objective(bool(request.against))
    return objective_name(objective, request.against or None)


def load_model(request: Request) -> "VisionModel":
    """The model of the request, on its device. Raises the errors of `vitrail.load`."""
    return load_named(request.model, request.checkpoint, **request.load)


def classes_of(request: Request, model: "VisionModel") -> tuple[list[int], list[int]]:
    """Returns the class indices of targets and contrastive targets. Raises `VitrailError` for an unknown class."""
    targets, against = ([model.class_index(name) for name in names] for names in (request.targets, request.against))
    pairs = max(len(targets), len(against)) if targets and against else 0
    for place in range(pairs):
        target, other = targets[place % len(targets)], against[place % len(against)]
        if target == other:
            name = model.class_name(target)
            raise SameClassError(f"{name} ({target}) is held against itself: give two different classes")
    return targets, against


def images_at_once(model: "VisionModel") -> int:
    """The most images of a pass where memory is no matter: more gain nothing, and are lost together."""
    return AT_ONCE.get(model.device.type, AT_ONCE_ELSEWHERE)


def passes_at_once(request: Request, model: "VisionModel", image: "Prepared", size: int) -> int:
    """How many passes over `size` images like this one go side by side."""
    from vitrail.cli.lanes import lanes_for

    # A method that draws from the global generator must be asked in one order for --seed to mean anything.
    return lanes_for(model, image.tensor, size) if request.seed is None else 1


def formats_of(asked: tuple[str, ...], images: int) -> tuple[str, ...]:
    """The kinds of file that are written: those asked for, else by the number of images."""
    return asked or (("png",) if images <= MANY else (OVERLAY, "safetensors"))


def results(
    request: Request,
    model: "VisionModel",
    classes: tuple[list[int], list[int]],
    found: Sequence[Found],
    names: OutputNames,
    formats: Sequence[str],
    reporter: Reporter,
) -> Generator[dict[str, Any], None, None]:
    """Rows of the table: images are read in threads ahead of the model, and results written in one behind it."""
    from vitrail.explain import explain
    from vitrail.inputs import prepare_one

    targets, against = classes

    def load(image: Found) -> "Prepared":
        return prepare_one(model, image.path)

    def ask(images: list[Found], prepared: "list[Prepared]") -> Explanation:
        return explain(
            model,
            prepared,
            _each(targets, against, len(images)),
            against=_each(against, targets, len(images)),
            batch_size=request.batch_size or None,
            progress=reporter.report,
            **request.question,
            **request.options,
        )

    def lanes(image: "Prepared") -> int:
        return passes_at_once(request, model, image, size)

    def failed(image: Found, error: Exception) -> None:
        reporter.fail(str(image.path), error)
        reporter.advance()

    def write(done: tuple[Found, Explanation]) -> list[Path]:
        image, ex = done
        return _write(ex, image, names, formats)

    size = request.batch_size or images_at_once(model)
    explained = in_batches(found, load, ask, size=size, failed=failed, lanes=lanes)
    # One thread writes: Matplotlib knows no more, and the disk is no faster for it.
    with closing(explained), closing(in_threads(write, explained, workers=1, depth=size, prompt=True)) as written:
        for (image, ex), files in written:
            try:
                rows = list(_rows(ex, image, files.result()))
            except VitrailError as error:
                failed(image, error)
                continue
            for note in ex.notes():
                reporter.note(str(image.path), note)
            yield from rows
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
        part = OVERLAY if kind == OVERLAY and "jpg" in formats else ""
        path = names.path(image, what, "jpg" if kind == OVERLAY else kind, part)
        files.append(SAVERS.get(kind, save_picture)(ex, path))
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
                    f"{role}_logit": ex.logits[0, index].item(),
                }
        scores = ex.map(target=j)
        row |= {
            "method": ex.method,
            "gradient": ex.gradient_mode(),
            **({"rivals": dict(ex.competitors(target=j))} if ex.competes else {}),
            **ex.output.record(),
            "lowest": scores.min().item(),
            "highest": scores.max().item(),
            "files": [str(path) for path in files],
            "notes": ex.notes(),
        }
        yield row


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    sides = []
    for role in ("target", "against"):
        said = verdict_of(row[f"{role}_probability"], row[f"{role}_logit"]) if role in row else ""
        sides += [row.get(role, ""), said]
    files = tuple(map(Path, row["files"]))
    return Path(row["image"]), *sides, number(row["lowest"]), number(row["highest"]), files
