"""`vitrail detail`: contrastive explanations of two classes, every loss in both directions, a sheet per pair."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.image_run import QUESTION_ERRORS, ImageRun, Request, load_model
from vitrail.cli.inputs import Found, slug
from vitrail.errors import NotAnImageError, OptionError, SameClassError

if TYPE_CHECKING:
    from vitrail.guidance import Detail, TypicalPictures
    from vitrail.models import VisionModel

__all__ = ["detail_command", "run"]

HEADER = ("image", "target", "its probability", "against", "and its", "both ways", "files")

Loss = StrEnum("Loss", "logit normalized_difference difference ratio")


def detail_command(
    images: shared.Images,
    model: shared.ModelName,
    target: shared.Target = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Contrastive classes, a sheet for each. Default: the model's best classes."),
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            "--top", min=2, help="Number of the model's best classes that are compared when --against is not given."
        ),
    ] = 3,
    typical: Annotated[
        Path | None,
        typer.Option(
            "--typical",
            help="Folder of typical images of the contrastive class, or with one subfolder per class. Default: none.",
        ),
    ] = None,
    loss: Annotated[
        list[Loss] | None,
        typer.Option(
            "--loss",
            help="Objective that is differentiated; repeat for several. Default: all four; two of them for scores.",
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
) -> bool:
    """Show which details make it the one class (red) rather than the other (blue).

    `vitrail detail photo.jpg --target snail --against conch slug` writes OUTPUT/photo.detail.snail-and-conch.png and
    one for the slug: every loss, in both directions. Without classes, the model's best three are compared in pairs.
    """
    request = Request(
        images=images,
        model=model,
        checkpoint=checkpoint,
        targets=[] if target is None else [target],
        against=against or [],
        question={
            "method": method,
            "gradient": gradient and str(gradient),
            "start_layer": start_layer,
            "centred": centred,
        },
        options={},
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        batch_size=1,
        output=output,
        formats=shared.kinds(format_),
        as_json=as_json,
        seed=None,
    )
    losses = tuple(dict.fromkeys(str(one) for one in loss)) if loss else None
    return run(request, top, losses, typical)


def run(request: Request, top: int, losses: tuple[str, ...] | None, typical: Path | None) -> bool:
    """Compares the classes on every image of the request; returns whether any image failed.

    Raises `VitrailError` for a faulty question.
    """
    from vitrail.methods import find_method

    find_method(request.question["method"], request.options)
    images = ImageRun.of(request)
    if images.place.file is not None and (len(request.against) > 1 or (not request.against and top > 2)):
        raise OptionError(
            f"--output {images.place.file} is one file, and every pair of classes gets a sheet: name a folder, or one "
            "pair by --target and --against"
        )
    if typical is not None:
        _refuse_empty(typical)

    def asked(results: list[dict[str, Any]]) -> dict[str, Any]:
        drawn = losses or list(dict.fromkeys(loss for row in results for loss in row["losses"]))
        return {**request.question, "losses": drawn}

    model = load_model(request)
    return images.report(model, _results(images, model, top, losses, typical), HEADER, _table, asked)


def _refuse_empty(folder: Path) -> None:
    from vitrail.guidance import picture_files

    if not folder.is_dir():
        raise NotAnImageError(f"--typical {folder} is no folder; give one of pictures, or with a subfolder per class")
    inside = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    if not any(picture_files(path) for path in inside):
        raise NotAnImageError(f"--typical {folder}: there is no picture in this folder or its subfolders")


def _results(
    run: ImageRun, model: "VisionModel", top: int, losses: tuple[str, ...] | None, typical: Path | None
) -> Generator[dict[str, Any], None, None]:
    from vitrail.guidance import detail
    from vitrail.images import read_image

    request = run.request
    target = model.class_index(request.targets[0]) if request.targets else None
    against = [model.class_index(name) for name in request.against] or None
    known: "dict[tuple[int, ...], dict[int, TypicalPictures]]" = {}
    for image in run.found:
        try:
            answer = detail(
                model, read_image(image.path), target, against,
                top=top, losses=losses, **request.question,
            )  # fmt: skip
            answer = replace(answer, maps={loss: ex.named(image.path.name) for loss, ex in answer.maps.items()})
            pictures = _typical(typical, model, answer, known, run)
            yield from _written(answer, pictures, image, run)
        except Exception as error:
            # What a prediction is held against may be itself on one image only; other faults are the question's.
            if isinstance(error, QUESTION_ERRORS) and not (target is None and isinstance(error, SameClassError)):
                raise
            run.reporter.fail(str(image.path), error)
        run.reporter.advance()


def _typical(
    folder: Path | None,
    model: "VisionModel",
    answer: "Detail",
    known: "dict[tuple[int, ...], dict[int, TypicalPictures]]",
    run: ImageRun,
) -> "dict[int, TypicalPictures]":
    from vitrail.guidance import typical_pictures

    if folder is None:
        return {}
    classes = tuple(dict.fromkeys(index for pair in answer.pairs for index in pair))
    if classes not in known:
        try:
            opposing = list(dict.fromkeys(pair[1] for pair in answer.pairs))
            known[classes] = typical_pictures(model, folder, classes, opposing)
        except NotAnImageError as error:
            run.reporter.say(f"warning: {error}")
            known[classes] = {}
        for pictures in known[classes].values():
            for path, reason in pictures.failures:
                run.reporter.say(f"warning: {path}: {reason}")
    return known[classes]


def _written(
    answer: "Detail", typical: "dict[int, TypicalPictures]", image: Found, run: ImageRun
) -> Iterator[dict[str, Any]]:
    from vitrail.plotting import save_figure
    from vitrail.plotting.class_pair import draw_pair

    pictures = [kind for kind in run.formats if kind != "safetensors"]
    maps = []
    if "safetensors" in run.formats:
        for loss, ex in answer.maps.items():
            maps.append(str(ex.save(run.names.path(image, "detail", "safetensors", loss))))
    for pair in answer.pairs:
        ex = next(iter(answer.maps.values()))
        what = f"detail.{slug(ex.class_name(pair[0]))}-and-{slug(ex.class_name(pair[1]))}"
        files = []
        if pictures:
            figure = draw_pair(answer, *pair, typical=typical)
            files = [str(save_figure(figure, run.names.path(image, what, kind))) for kind in pictures]
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
                "difference_instead": view.provenance.difference_instead[0][0],
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


def _table(row: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    from vitrail.outputs import verdict_of

    sides = []
    for role in ("target", "against"):
        sides += [row[role], verdict_of(row[f"{role}_probability"], row[f"{role}_logit"])]
    loss = "normalized_difference" if "normalized_difference" in row["losses"] else next(iter(row["losses"]))
    both_ways = f"{row['losses'][loss]['correlation']:+.2f}".replace("-", "−")
    yield Path(row["image"]), *sides, both_ways, tuple(map(Path, row["files"]))
