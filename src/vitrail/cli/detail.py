"""`vitrail detail`: class against class on one photograph, every loss both ways, a sheet per pair."""

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
from vitrail.cli.prefetch import QUESTION_ERRORS
from vitrail.cli.request import FILES, Request, how_to_load, kinds, load_model
from vitrail.errors import NotAnImageError, OptionError, SameClassError, VitrailError

if TYPE_CHECKING:
    from vitrail.guidance import Detail, TypicalPictures
    from vitrail.models import VisionModel

__all__ = ["DetailRequest", "detail_command", "run"]

HEADER = ("image", "target", "its probability", "against", "and its", "both ways", "files")


class Loss(StrEnum):
    """The scalars that compare two classes, and the target's logit."""

    logit = "logit"
    normalized_difference = "normalized_difference"
    difference = "difference"
    ratio = "ratio"


@dataclass(frozen=True)
class DetailRequest(Request):
    """One call of the command, its words already read."""

    top: int
    losses: tuple[str, ...] | None
    typical: Path | None


def detail_command(
    images: shared.Images,
    model: shared.ModelName,
    target: shared.Target = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Classes to compare with, one sheet each. Default: the model's best classes."),
    ] = None,
    top: Annotated[
        int,
        typer.Option("--top", min=2, help="Without --against: number of the model's best classes that are compared."),
    ] = 3,
    typical: Annotated[
        Path | None,
        typer.Option(
            "--typical",
            help="Folder of typical pictures of the opposing class, or one per class, to be drawn too. Default: none.",
        ),
    ] = None,
    loss: Annotated[
        list[Loss] | None,
        typer.Option(
            "--loss", help="Objective that is differentiated; several: repeat. Default: all four; for scores two."
        ),
    ] = None,
    method: shared.Method = "complete",
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Formats = None,
    gradient: shared.OwnGradientMode = None,
    start_layer: shared.StartLayer = None,
    centred: shared.Centred = False,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    as_json: shared.AsJson = False,
) -> None:
    """Show which details make it the one class (red) rather than the other (blue).

    `vitrail detail photo.jpg --target snail --against conch slug` writes OUTPUT/photo.detail.snail-and-conch.png and
    one for the slug: every loss, both ways. Without classes the pairs are those among the model's best three.
    """
    request = DetailRequest(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=against or [],
        question={
            "method": method,
            "gradient": gradient and gradient.value,
            "start_layer": start_layer,
            "centred": centred,
        },
        options={},
        load=how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=kinds(format_),
        as_json=as_json,
        seed=None,
        top=top,
        losses=tuple(dict.fromkeys(one.value for one in loss)) if loss else None,
        typical=typical,
    )
    try:
        failed = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def run(request: DetailRequest) -> bool:
    """Compare the classes on every image of the request; say whether any image failed.

    Raises `VitrailError` for a question at fault.
    """
    from vitrail.methods import find_method

    find_method(request.question["method"], request.options)
    place = destination(request.output, FILES, request.formats)
    if place.file is not None and (len(request.against) > 1 or (not request.against and request.top > 2)):
        raise OptionError(
            f"--output {place.file} is one file, and every pair of classes gets a sheet: name a folder, or one pair by "
            "--target and --against"
        )
    reporter = Reporter(as_json=request.as_json)
    found, missing = find_images(request.images, leave_out=place.leave_out)
    names = OutputNames(place.folder, found, place.file)
    if request.typical is not None:
        _refuse_empty(request.typical)
    model = load_model(request)
    for argument, error in missing:
        reporter.fail(argument, error)
    at_the_end = request.as_json or sys.stdout.isatty()  # a table would run into the progress bar
    with reporter.working(len(found)):
        results: Iterable[dict[str, Any]] = _results(request, model, found, names, place.formats or ("png",), reporter)
        if at_the_end:
            results = list(results)
        else:
            show_table(HEADER, map(_row, results))
    if request.as_json:
        losses = request.losses or list(dict.fromkeys(loss for row in results for loss in row["losses"]))
        asked = {**request.question, "losses": losses}
        document = {"model": model.name, "metadata": dict(model.metadata), **asked, "results": results}
        show_json({**document, "failures": reporter.failures})
    elif at_the_end:
        show_table(HEADER, map(_row, results))
    return bool(reporter.failures)


def _refuse_empty(folder: Path) -> None:
    from vitrail.guidance import picture_files

    if not folder.is_dir():
        raise NotAnImageError(f"--typical {folder} is no folder; give one of pictures, or with a subfolder per class")
    inside = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    if not any(picture_files(path) for path in inside):
        raise NotAnImageError(f"--typical {folder}: there is no picture in this folder or its subfolders")


def _results(
    request: DetailRequest,
    model: "VisionModel",
    found: Sequence[Found],
    names: OutputNames,
    formats: Sequence[str],
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    from vitrail.guidance import detail
    from vitrail.images import read_image

    target = model.class_index(request.targets[0]) if request.targets else None
    against = [model.class_index(name) for name in request.against] or None
    known: "dict[tuple[int, ...], dict[int, TypicalPictures]]" = {}
    for image in found:
        try:
            answer = detail(
                model, read_image(image.path), target, against,
                top=request.top, losses=request.losses, **request.question,
            )  # fmt: skip
            maps = {
                loss: replace(ex, metadata={**ex.metadata, "sources": [image.path.name]})
                for loss, ex in answer.maps.items()
            }
            answer = replace(answer, maps=maps)
            typical = _typical(request, model, answer, known, reporter)
            yield from _written(answer, typical, image, names, formats)
        except Exception as error:
            # What a prediction is held against may be itself on one image only; other faults are the question's.
            if isinstance(error, QUESTION_ERRORS) and not (target is None and isinstance(error, SameClassError)):
                raise
            reporter.fail(str(image.path), error)
        reporter.advance()


def _typical(
    request: DetailRequest,
    model: "VisionModel",
    answer: "Detail",
    known: "dict[tuple[int, ...], dict[int, TypicalPictures]]",
    reporter: Reporter,
) -> "dict[int, TypicalPictures]":
    from vitrail.guidance import typical_pictures

    if request.typical is None:
        return {}
    classes = tuple(dict.fromkeys(index for pair in answer.pairs for index in pair))
    if classes not in known:
        try:
            opposing = list(dict.fromkeys(pair[1] for pair in answer.pairs))
            known[classes] = typical_pictures(model, request.typical, classes, opposing)
        except NotAnImageError as error:
            reporter.say(f"warning: {error}")
            known[classes] = {}
        for pictures in known[classes].values():
            for path, reason in pictures.failures:
                reporter.say(f"warning: {path}: {reason}")
    return known[classes]


def _written(
    answer: "Detail",
    typical: "dict[int, TypicalPictures]",
    image: Found,
    names: OutputNames,
    formats: Sequence[str],
) -> Iterator[dict[str, Any]]:
    from vitrail.plotting import save_figure
    from vitrail.plotting.class_pair import draw_pair

    pictures = [kind for kind in formats if kind != "safetensors"]
    maps = []
    if "safetensors" in formats:
        for loss, ex in answer.maps.items():
            maps.append(str(ex.save(names.path(image, "detail", "safetensors", loss))))
    for pair in answer.pairs:
        ex = next(iter(answer.maps.values()))
        what = f"detail.{slug(ex.class_name(pair[0]))}-and-{slug(ex.class_name(pair[1]))}"
        files = []
        if pictures:
            figure = draw_pair(answer, *pair, typical=typical)
            files = [str(save_figure(figure, names.path(image, what, kind))) for kind in pictures]
        yield _result(answer, pair, typical, image.path) | {"files": files + maps}


def _result(
    answer: "Detail", pair: tuple[int, int], typical: "dict[int, TypicalPictures]", path: Path
) -> dict[str, Any]:
    ex = next(iter(answer.maps.values()))
    row: dict[str, Any] = {"image": str(path), **ex.output.record()}
    for role, index in zip(("target", "against"), pair, strict=True):
        row |= {
            role: ex.class_name(index),
            f"{role}_index": index,
            f"{role}_probability": ex.probability(index),
            f"{role}_logit": float(answer.logits[index]),
        }
    row["losses"] = {}
    for loss in answer.losses:
        ways = {}
        for way, (one, other) in (("forward", pair), ("reverse", pair[::-1])):
            view = answer.view(loss, one, other)
            ways[way] = {
                "value": answer.value(loss, one, other),
                "lowest": view.scores.min().item(),
                "highest": view.scores.max().item(),
                "difference_instead": view.metadata["difference_instead"][0][0],
            }
        row["losses"][loss] = {**ways, "correlation": answer.reversal(loss, *pair)}
    row["typical"] = {
        ex.class_name(index): {
            "folder": str(typical[index].folder),
            "pictures": len(typical[index].pictures),
            "predicted": {ex.class_name(asked): typical[index].predicted_as(asked) for asked in pair},
        }
        for index in pair
        if index in typical
    }
    return row


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    from vitrail.explanation import verdict_of

    sides = []
    for role in ("target", "against"):
        sides += [row[role], verdict_of(row[f"{role}_probability"], row[f"{role}_logit"])]
    loss = "normalized_difference" if "normalized_difference" in row["losses"] else next(iter(row["losses"]))
    both_ways = f"{row['losses'][loss]['correlation']:+.2f}".replace("-", "−")
    return Path(row["image"]), *sides, both_ways, tuple(map(Path, row["files"]))
