"""`vitrail explain`: pictures of why, for images, folders and patterns."""

import random
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show_json, show_table, stop
from vitrail.cli.inputs import OVERLAY, Found, OutputNames, destination, find_images, slug
from vitrail.cli.prefetch import in_batches, in_threads
from vitrail.cli.request import (
    FILES,
    Request,
    check_question,
    classes_of,
    how_to_load,
    kinds,
    load_model,
    parse_batch,
    split_option,
)
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.explanation import Explanation
    from vitrail.inputs import Prepared
    from vitrail.models import VisionModel

__all__ = ["explain_command", "formats_of", "images_at_once", "passes_at_once", "results", "run"]

MANY = 100  # images, from which on a figure of each would take longer and more room than anybody wants
AT_ONCE = {"cpu": 8}  # images; a CPU is quickest while the activations stay in its cache
AT_ONCE_ELSEWHERE = 64

HEADER = ("image", "target", "its probability", "against", "and its", "lowest", "highest", "files")


def explain_command(
    images: shared.Images,
    model: shared.ModelName,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", help="Class to explain, by name or index; several: repeat. Default: the predicted class."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Class to compare with; one, or one for each target. Default: none."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="For CLIP models: a text as the target; several: repeat."),
    ] = None,
    against_text: Annotated[
        list[str] | None,
        typer.Option("--against-text", help="For CLIP models: a text to compare with; one, or one for each --text."),
    ] = None,
    method: shared.Method = "complete",
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.FolderFormats = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="What is differentiated. Default: logit; with --against difference."),
    ] = None,
    gradient: shared.OwnGradientMode = None,
    compete: Annotated[
        bool | None,
        typer.Option(
            "--compete/--no-compete",
            help="Subtract what argues for other classes in the image. Default: yes for complete, unless --gradient, "
            "--objective or --against is given.",
        ),
    ] = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    readout: Annotated[
        str | None,
        typer.Option(
            "--readout",
            help="Token to read: class, mean, all, an index, or ROW,COLUMN of a patch. Default: the model's own.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="An option of the method, as in variant=released; several: repeat."
        ),
    ] = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    batch_size: shared.AutoBatchSize = "auto",
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed of the method. Default: none.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Estimate memory and time instead of explaining.")] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Draw which patches argue for a class (red) and which against it (blue).

    Each image becomes OUTPUT/<stem>.<target>.png, a figure. More than 100 images become small overlays (.jpg) and maps
    (.safetensors) instead, unless --format says otherwise. A failed image is reported on stderr and sets exit code 1;
    the others continue. Exit code 2: the question itself cannot be asked.
    """
    from vitrail.cli.estimate import show_plan

    options = dict(split_option(text) for text in option or [])
    texts = [*(text or []), *(against_text or [])]
    if texts and (target or against):
        raise typer.BadParameter(
            "a text is a target of its own: give --text and --against-text, or --target and --against",
            param_hint="--text",
        )
    if against_text and not text:
        raise typer.BadParameter("say what it is compared with, by --text", param_hint="--against-text")
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=text or target or [],
        against=against_text or against or [],
        question={
            "method": method,
            "objective": objective,
            "gradient": gradient and gradient.value,
            "compete": compete,
            "start_layer": start_layer,
            "centred": centred,
            "readout": None if readout is None else _readout(readout),
        },
        options=options,
        load={**how_to_load(device, dtype, size, output_kind, num_classes, class_names), "texts": texts or None},
        batch_size=parse_batch(batch_size),
        output=output,
        formats=kinds(format_),
        as_json=as_json,
        seed=seed,
    )
    if seed is not None:
        _sow(seed)
    try:
        failed = show_plan(request) if plan else run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def _readout(text: str) -> Any:
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        return int(parts[0]), int(parts[1])
    return int(text) if text.removeprefix("-").isdecimal() else text


def _sow(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that a method calls may draw from the global generator)
    torch.manual_seed(seed)


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


def images_at_once(model: "VisionModel") -> int:
    """The most images of a pass where memory is no matter: more gain nothing, and are lost together."""
    return AT_ONCE.get(model.device.type, AT_ONCE_ELSEWHERE)


def passes_at_once(request: Request, model: "VisionModel", image: "Prepared", size: int) -> int:
    """How many passes over `size` images like this one go side by side."""
    from vitrail.cli.cpu_parallelism import lanes_for

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

    def ask(images: list[Found], prepared: "list[Prepared]") -> "Explanation":
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

    def write(done: "tuple[Found, Explanation]") -> list[Path]:
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


def _write(ex: "Explanation", image: Found, names: OutputNames, formats: Sequence[str]) -> list[Path]:
    from vitrail.plotting import save_light, save_picture

    savers: dict[str, Any] = {"safetensors": type(ex).save, OVERLAY: save_light}
    sides = [ex.sides(target=j) for j in range(ex.targets)]
    what = _joined([slug(side[0][0]) for side in sides])
    if ex.against is not None:
        what += ".against-" + _joined([slug(side[1][0]) for side in sides])
    files = []
    for kind in formats:
        part = OVERLAY if kind == OVERLAY and "jpg" in formats else ""
        path = names.path(image, what, "jpg" if kind == OVERLAY else kind, part)
        files.append(savers.get(kind, save_picture)(ex, path))
    return files


def _joined(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    whole = "+".join(names)
    return whole if len(whole.encode()) <= 100 else f"{names[0]}+{len(names) - 1}-more"


def _rows(ex: "Explanation", image: Found, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
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
    from vitrail.explanation import verdict_of
    from vitrail.plotting.canvas import number

    sides = []
    for role in ("target", "against"):
        said = verdict_of(row[f"{role}_probability"], row[f"{role}_logit"]) if role in row else ""
        sides += [row.get(role, ""), said]
    files = tuple(map(Path, row["files"]))
    return Path(row["image"]), *sides, number(row["lowest"]), number(row["highest"]), files
