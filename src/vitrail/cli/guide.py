"""`vitrail guide`: a photograph explained beside a picture of another class."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show_json, show_table, stop
from vitrail.cli.inputs import Found, OutputNames, destination, find_images, slug
from vitrail.cli.prefetch import in_batches
from vitrail.cli.request import FILES, Request, check_question, how_to_load, kinds, load_model
from vitrail.errors import OptionError, VitrailError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.explanation import Explanation
    from vitrail.guidance import Guide
    from vitrail.models import VisionModel

__all__ = ["GuideRequest", "guide_command", "run"]

HEADER = ("image", "target", "its probability", "guide", "beside it", "files")


class Layout(StrEnum):
    """How original and guide share the input."""

    side = "side"
    stack = "stack"
    wide = "wide"
    tall = "tall"


class Side(StrEnum):
    """Where the original lies."""

    left = "left"
    right = "right"
    top = "top"
    bottom = "bottom"
    both = "both"


class ResizeMode(StrEnum):
    """How a picture is brought into its half."""

    squash = "squash"
    crop = "crop"
    pad = "pad"


@dataclass(frozen=True)
class GuideRequest(Request):
    """One call of the command, its words already read."""

    guide: dict[str, Any]  # keyword arguments of vitrail.Guide


def guide_command(
    images: shared.Images,
    model: shared.ModelName,
    guide: Annotated[
        list[str] | None,
        typer.Option(
            "--guide",
            "-g",
            help="Picture of another class, or a folder; several: repeat. Default: auto, which the model draws.",
        ),
    ] = None,
    target: shared.Target = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Class to compare with; the objective is then the difference.")
    ] = None,
    layout: Annotated[
        list[Layout] | None,
        typer.Option(
            "--layout",
            help="Side by side or stacked; wide, tall: at full resolution. Several: their mean. Default: side.",
        ),
    ] = None,
    side: Annotated[
        Side | None, typer.Option("--side", help="Where the original lies; both: the mean. Default: left or top.")
    ] = None,
    resize_mode: Annotated[
        ResizeMode, typer.Option("--resize-mode", help="How each picture is brought into its half.")
    ] = ResizeMode.squash,
    guide_class: Annotated[
        str | None,
        typer.Option(
            "--guide-class", help="Class that auto draws, by name or index. Default: one far from the target."
        ),
    ] = None,
    guide_limit: Annotated[
        int, typer.Option("--guide-limit", min=1, help="Largest number of pictures taken from a folder of guides.")
    ] = 8,
    method: shared.Method = "complete",
    gradient: shared.GradientMode = shared.Gradient.full,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Formats = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    batch_size: shared.BatchSize = 8,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the guide that the model draws.")] = 0,
    as_json: shared.AsJson = False,
) -> None:
    """Explain a photograph next to a guide: a picture of another class, which takes the evidence against the target.

    Each image becomes OUTPUT/<stem>.<target>.guided.png: its map with and without the guide, and the whole stitched
    map. `--guide auto` needs no picture: the model draws one. The other files, exit codes and lines on stderr are those
    of `vitrail explain`.
    """
    pictures = guide or ["auto"]
    request = GuideRequest(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=[] if against is None else [against],
        question={
            "method": method,
            "objective": None,
            "gradient": gradient.value,
            "start_layer": start_layer,
            "centred": centred,
        },
        options={},
        load=how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=batch_size,
        output=output,
        formats=kinds(format_),
        as_json=as_json,
        seed=seed,
        guide={
            "pictures": pictures[0] if len(pictures) == 1 else pictures,
            "layout": tuple(one.value for one in layout or [Layout.side]),
            "side": None if side is None else side.value,
            "fit": resize_mode.value,
            "most": guide_limit,
            "guide_class": guide_class,
            "seed": seed,
        },
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def run(request: GuideRequest) -> bool:
    """Explain every image of the request next to its guides; say whether any failed.

    Raises `VitrailError` for a question at fault.
    """
    from vitrail.guidance import Guide
    from vitrail.methods import find_method

    check_question(request)
    method = find_method(request.question["method"], request.options)
    if not method.class_specific:
        raise OptionError(f"{method.name} is the same for every class, so a guide cannot steer it")
    guide = Guide(**request.guide)
    if not guide.drawn:
        guide = replace(guide, pictures=_opened(guide))  # a folder without pictures is told before a model is loaded
    place = destination(request.output, FILES, request.formats)
    reporter = Reporter(as_json=request.as_json)
    found, missing = find_images(request.images, leave_out=place.leave_out)
    names = OutputNames(place.folder, found, place.file)
    model = load_model(request)
    targets = [model.class_index(name) for name in request.targets]
    against = [model.class_index(name) for name in request.against]
    if guide.guide_class is not None:
        guide = replace(guide, guide_class=model.class_index(guide.guide_class))
    for argument, error in missing:
        reporter.fail(argument, error)
    at_the_end = request.as_json or sys.stdout.isatty()  # a table would run into the progress bar
    with reporter.working(len(found)):
        results: Iterable[dict[str, Any]] = _results(
            request, model, (targets, against), guide, found, names, place.formats or ("png",), reporter
        )
        if at_the_end:
            results = list(results)
        else:
            show_table(HEADER, map(_row, results))
    if request.as_json:
        asked = {**request.question, "guide": {**request.guide, "pictures": str(request.guide["pictures"])}}
        answers = {"results": results, "failures": reporter.failures}
        document = {"model": model.name, "metadata": dict(model.metadata), **asked, **answers}
        show_json(document)
    elif at_the_end:
        show_table(HEADER, map(_row, results))
    return bool(reporter.failures)


def _opened(guide: "Guide") -> list[Any]:
    """The guide's files, each read once, so that one which is no picture stops the run at its start."""
    from vitrail.images import read_image

    items: list[Any] = guide.items()
    for item in items:
        read_image(item)
    return items


def _results(
    request: GuideRequest,
    model: "VisionModel",
    classes: tuple[list[int], list[int]],
    guide: "Guide",
    found: Sequence[Found],
    names: OutputNames,
    formats: Sequence[str],
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    from vitrail.explain import explain
    from vitrail.images import read_image

    def load(image: Found) -> "Image":
        return read_image(image.path)

    def ask(images: list[Found], pictures: "list[Image]") -> "list[tuple[Explanation, Explanation]]":
        wanted, other = (each * len(pictures) or None for each in classes)
        both = []
        for steered in (guide, None):
            ex = explain(model, pictures, wanted, against=other, guide=steered, **request.question, **request.options)
            both.append(replace(ex, metadata={**ex.metadata, "sources": [image.path.name for image in images]}))
        return list(zip(both[0], both[1], strict=True))

    def failed(image: Found, error: Exception) -> None:
        reporter.fail(str(image.path), error)
        reporter.advance()

    for image, (guided, unguided) in in_batches(found, load, ask, size=request.batch_size, failed=failed):
        try:
            files = _write(guided, unguided, image, names, formats)
        except VitrailError as error:
            failed(image, error)
            continue
        yield _fields(guided, image, files)
        reporter.advance()


def _write(
    guided: "Explanation", unguided: "Explanation", image: Found, names: OutputNames, formats: Sequence[str]
) -> list[Path]:
    from vitrail.plotting.figure import draw_guided
    from vitrail.plotting.saving import save_figure

    what = f"{slug(guided.sides()[0][0])}.guided"
    files = []
    for kind in formats:
        path = names.path(image, what, kind)
        shown = kind != "safetensors"
        files.append(save_figure(draw_guided(guided, unguided), path) if shown else guided.save(path))
    return files


def _fields(ex: "Explanation", image: Found, files: Sequence[Path]) -> dict[str, Any]:
    index = int(ex.target[0])
    return {
        "image": str(image.path),
        "target": ex.class_name(index),
        "target_index": index,
        "target_probability": ex.probability(index),
        **ex.output.record(),
        "guides": ex.metadata["guides"][0],
        "beside_the_guide": [part.probability(index) for part in ex.guided],
        "stitched": [part.metadata["stitch"] for part in ex.guided],
        "files": [str(path) for path in files],
        "notes": ex.notes(),
    }


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    from vitrail.explanation import percent

    guides = dict.fromkeys(f"{guide['class_name']}{' (drawn)' if guide['drawn'] else ''}" for guide in row["guides"])
    beside = sorted(row["beside_the_guide"])
    spread = "…".join(dict.fromkeys((percent(beside[0]), percent(beside[-1]))))
    own = percent(row["target_probability"])
    return Path(row["image"]), row["target"], own, ", ".join(guides), spread, tuple(map(Path, row["files"]))
