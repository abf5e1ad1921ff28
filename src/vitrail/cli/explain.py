"""`vitrail explain`: attribution maps of images, folders and patterns."""

import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.image_run import (
    ImageRun,
    Request,
    check_question,
    classes_of,
    for_each,
    images_at_once,
    in_batches,
    in_threads,
    load_model,
    passes_at_once,
)
from vitrail.cli.inputs import OVERLAY, Found, formats_of, slug
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from vitrail.explanation import Explanation
    from vitrail.inputs import Prepared
    from vitrail.models import VisionModel

__all__ = ["explain_command", "results", "run"]

HEADER = ("image", "target", "its probability", "against", "and its", "lowest", "highest", "files")


def explain_command(
    images: shared.Images,
    model: shared.ModelName,
    target: shared.Targets = None,
    against: shared.Against = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="For CLIP models: text to explain, as the target; repeat for several."),
    ] = None,
    against_text: Annotated[
        list[str] | None,
        typer.Option("--against-text", help="For CLIP models: contrastive text; one, or one for each --text."),
    ] = None,
    method: shared.Method = "complete",
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.FolderFormats = None,
    objective: shared.Objective = None,
    gradient: shared.OwnGradientMode = None,
    compete: Annotated[
        bool | None,
        typer.Option(
            "--compete/--no-compete",
            help="Subtract the evidence for other classes in the image. Default: on for complete, unless --gradient, "
            "--objective or --against is given.",
        ),
    ] = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    readout: Annotated[
        str | None,
        typer.Option(
            "--readout",
            help="Token to read out: class, mean, all, an index, or ROW,COLUMN of a patch. Default: the model's own.",
        ),
    ] = None,
    resolution: Annotated[
        str,
        typer.Option(
            "--resolution",
            metavar="CELLS",
            help="Cells on a side of a patch, such as 2 or 4, or pixel. Default: 1, a score for each patch.",
        ),
    ] = "1",
    smooth: Annotated[
        shared.Smoothing | None,
        typer.Option(
            "--smooth",
            help="Average maps of several views of the image: shift, flip, scale. Default: shift with --resolution, "
            "else none.",
        ),
    ] = None,
    effort: Annotated[
        int | None,
        typer.Option("--effort", help="Number of views, each a pass. Default: 4 shifts, 2 flips, 3 scales."),
    ] = None,
    option: shared.MethodOptions = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    batch_size: shared.AutoBatchSize = "auto",
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed of the method. Default: unseeded.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Estimate memory and time, and stop.")] = False,
    as_json: shared.AsJson = False,
) -> bool:
    """Draw which patches argue for a class (red) and which against it (blue).

    Each image becomes a figure, OUTPUT/<stem>.<target>.png. More than 100 images become small overlays (.jpg) and maps
    (.safetensors) instead, unless --format says otherwise. A failed image is reported on stderr and sets exit code 1;
    the others continue. Exit code 2: the question is invalid for every image.
    """

    options = dict(shared.split_option(text) for text in option or [])
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
            "gradient": gradient and str(gradient),
            "compete": compete,
            "start_layer": start_layer,
            "centred": centred,
            "readout": None if readout is None else _readout(readout),
            **_views(resolution, smooth, effort),
        },
        options=options,
        load={**shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names), "texts": texts or None},
        batch_size=shared.parse_batch(batch_size),
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=seed,
    )
    if seed is not None:
        _sow(seed)
    if not plan:
        return run(request)
    from vitrail.cli.estimate import show_plan

    return show_plan(request, results)


def _readout(text: str) -> Any:
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        return int(parts[0]), int(parts[1])
    return int(text) if text.removeprefix("-").isdecimal() else text


def _views(resolution: str, smooth: str | None, effort: int | None) -> dict[str, Any]:
    """What is asked of views and cells, where anything is."""
    if resolution == "1" and smooth is None and effort is None:
        return {}
    cells = int(resolution) if resolution.isdecimal() else resolution
    return {"resolution": cells, "smooth": smooth and str(smooth), "effort": effort}


def _sow(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that a method calls may draw from the global generator)
    torch.manual_seed(seed)


def run(request: Request) -> bool:
    """Explains every image of the request; returns whether any failed. Raises `VitrailError` for a faulty question."""
    objective = check_question(request)
    images = ImageRun.of(request)
    model = load_model(request)
    classes = classes_of(request, model)
    formats = formats_of(images.place.formats, len(images.found))
    if not images.place.formats and OVERLAY in formats:
        kinds = "small overlays (.jpg) and maps (.safetensors)"
        images.reporter.say(f"{len(images.found)} images: {kinds} are written; --format png draws each a figure")
    asked = {**request.question, "objective": objective, "options": request.options}
    each = results(images, model, classes, formats)
    return images.report(model, each, HEADER, _table, lambda _: asked)


def results(
    images: ImageRun, model: "VisionModel", classes: tuple[list[int], list[int]], formats: Sequence[str]
) -> Generator[dict[str, Any], None, None]:
    """Yields a row for each target: images are read in threads ahead of the model, and drawn in one behind it."""
    from vitrail.explain import explain
    from vitrail.inputs import prepare_one

    request, reporter = images.request, images.reporter
    targets, against = classes
    size = request.batch_size or images_at_once(model)

    def load(image: Found) -> "Prepared":
        return prepare_one(model, image.path)

    def ask(members: list[Found], prepared: "list[Prepared]") -> "Explanation":
        return explain(
            model,
            prepared,
            for_each(targets, against, len(members)),
            against=for_each(against, targets, len(members)),
            batch_size=request.batch_size or None,
            progress=reporter.report,
            **request.question,
            **request.options,
        )

    def parallel(image: "Prepared") -> int:
        # A method that draws from the global generator must be asked in one order for --seed to mean anything.
        return passes_at_once(model, image.tensor, size) if request.seed is None else 1

    def write(done: "tuple[Found, Explanation]") -> list[Path]:
        image, ex = done
        return _write(ex, image, images, formats)

    explained = in_batches(images.found, load, ask, size=size, failed=images.failed, parallel=parallel)
    # One thread writes: Matplotlib knows no more, and the disk is no faster for it.
    with closing(explained), closing(in_threads(write, explained, workers=1, depth=size, prompt=True)) as written:
        for (image, ex), files in written:
            try:
                rows = list(_rows(ex, image, files.result()))
            except VitrailError as error:
                images.failed(image, error)
                continue
            for note in ex.notes():
                reporter.note(str(image.path), note)
            yield from rows
            reporter.advance()


def _write(ex: "Explanation", image: Found, images: ImageRun, formats: Sequence[str]) -> list[Path]:
    from vitrail.plotting import save_light, save_picture

    savers: dict[str, Any] = {"safetensors": type(ex).save, OVERLAY: save_light}
    sides = [ex.sides(target=j) for j in range(ex.targets)]
    what = _joined([slug(side[0][0]) for side in sides])
    if ex.against is not None:
        what += ".against-" + _joined([slug(side[1][0]) for side in sides])
    files = []
    for kind in formats:
        part = OVERLAY if kind == OVERLAY and "jpg" in formats else ""
        path = images.names.path(image, what, "jpg" if kind == OVERLAY else kind, part)
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
            **({"finer": ex.metadata["finer"]} if ex.provenance.finer else {}),
            **ex.output.record(),
            "lowest": scores.min().item(),
            "highest": scores.max().item(),
            "files": [str(path) for path in files],
            "notes": ex.notes(),
        }
        yield row


def _table(row: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    from vitrail.outputs import verdict_of
    from vitrail.plotting.canvas import number

    sides = []
    for role in ("target", "against"):
        said = verdict_of(row[f"{role}_probability"], row[f"{role}_logit"]) if role in row else ""
        sides += [row.get(role, ""), said]
    files = tuple(map(Path, row["files"]))
    yield Path(row["image"]), *sides, number(row["lowest"]), number(row["highest"]), files
