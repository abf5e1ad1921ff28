"""`vitrail transfer`: lower a class's logit by moving attention alone, and watch where the reasons go."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show_json, show_table, stop
from vitrail.cli.inputs import Found, OutputNames, destination, slug
from vitrail.cli.request import kinds, load_named
from vitrail.errors import ImageError, OptionError, VitrailError

if TYPE_CHECKING:
    from vitrail.counterfactual.transfer_result import Transfer
    from vitrail.models import VisionModel

__all__ = ["TransferRequest", "run", "transfer_command"]

FIGURES = ("png", "jpg", "pdf", "svg")
FILMS = ("gif", "mp4")
FRAMES = 60  # about as many as a film gets unless `--frame-interval` says otherwise


class Optimiser(StrEnum):
    """How a step is taken."""

    sgd = "sgd"
    adam = "adam"


class Constraint(StrEnum):
    """What attention is held to."""

    none = "none"
    clamp = "clamp"
    softmax = "softmax"


class Film(StrEnum):
    """The kind of file that the film becomes."""

    gif = "gif"
    webp = "webp"
    mp4 = "mp4"
    none = "none"


@dataclass(frozen=True)
class TransferRequest:
    """One call of the command, its words already read."""

    image: Path
    model: str
    checkpoint: Path | None
    target: str | None
    against: str | None
    also: list[str]
    question: dict[str, Any]  # steps, lr, optimiser, constraint: keyword arguments of `transfer`
    figure_steps: list[int]
    frame_interval: int | None
    device: str
    dtype: str
    resize: int | None
    output_kind: str | None
    num_classes: int | None
    class_names: Path | None
    output: Path
    pictures: tuple[str, ...]  # none: png
    film: str
    restart: bool
    as_json: bool


def transfer_command(
    image: shared.ImageFile,
    model: shared.ModelName,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Class whose logit is lowered, by name or index. Default: the predicted."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Class to watch as well, by name or index. Default: the strongest other."),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="One more class to watch; several: repeat. Default: none.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps of gradient descent.")] = 50,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of the descent.")] = 4e-4,
    optimiser: Annotated[Optimiser, typer.Option("--optimiser", help="Plain gradient descent, or Adam.")] = (
        Optimiser.sgd
    ),
    constraint: Annotated[
        Constraint,
        typer.Option("--constraint", help="clamp: no negative attention; softmax: rows stay distributions."),
    ] = Constraint.none,
    figure_step: Annotated[
        list[int] | None,
        typer.Option(
            "--figure-step", help="Step drawn in the figure; several: repeat. Default: 0, 5, 10, 20, 50, last."
        ),
    ] = None,
    frame_interval: Annotated[
        int | None,
        typer.Option("--frame-interval", min=1, help="Steps between frames of the film. Default: about 60 frames."),
    ] = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Figures = None,
    film: Annotated[Film, typer.Option("--film", help="Kind of film; mp4 needs ffmpeg.")] = Film.gif,
    resize: shared.Resize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of resuming an interrupted run.")
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Lower the logit of a class by gradient descent on all attention maps, and draw where its reasons go.

    OUTPUT gets a figure (classes by steps, with the logits' curves), a film, and a .safetensors record of everything.
    Ctrl-C leaves a state there from which the same command goes on, to the very same numbers; the exit code is then
    130. It is 1 when the image cannot be read, and 2 when the question cannot be asked.
    """
    request = TransferRequest(
        image=image,
        model=model,
        checkpoint=checkpoint,
        target=target,
        against=against,
        also=also or [],
        question={"steps": steps, "lr": lr, "optimiser": optimiser.value, "constraint": constraint.value},
        figure_steps=figure_step or [],
        frame_interval=frame_interval,
        device=device,
        dtype=dtype.value,
        resize=resize,
        output_kind=output_kind and output_kind.value,
        num_classes=num_classes,
        class_names=class_names,
        output=output,
        pictures=kinds(format_),
        film=film.value,
        restart=restart,
        as_json=as_json,
    )
    try:
        code = run(request)
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(code)


def run(request: TransferRequest) -> int:
    """Do what is asked; the exit code. Raises `VitrailError` for a question at fault."""
    from vitrail.counterfactual import transfer
    from vitrail.plotting.film import check_film

    reporter = Reporter(as_json=request.as_json)
    place = destination(request.output, (*FIGURES, *FILMS, "safetensors"))
    request = _by_ending(request, place.file)
    columns, snapshots = _snapshots(request)
    if request.film != "none":
        check_film(f"film.{request.film}")  # before the work: there may be no ffmpeg
    names = OutputNames(place.folder, [Found(request.image, Path(request.image.stem))], place.file)
    model = load_named(
        request.model,
        request.checkpoint,
        device=request.device,
        dtype=request.dtype,
        resize=request.resize,
        output=request.output_kind,
        num_classes=request.num_classes,
        class_names=request.class_names,
    )
    target, opposing, *also = (
        None if name is None else model.class_index(name) for name in (request.target, request.against, *request.also)
    )
    state = _state(request, names, model, target, opposing)
    if request.restart:
        state.unlink(missing_ok=True)
    taken = 0

    def progress(now: int, _: int) -> None:
        nonlocal taken
        reporter.advance(now - taken)
        taken = now

    try:
        with reporter.working(request.question["steps"], "moving attention"):
            found = transfer(
                model,
                request.image,
                target,
                opposing,
                also=[index for index in also if index is not None],
                snapshots=snapshots,
                progress=progress,
                state=state,
                **request.question,
            )
    except ImageError as error:
        reporter.fail(str(request.image), error)
        return 1
    except KeyboardInterrupt:
        steps = request.question["steps"]
        kept = f": {state} is kept, and the same command goes on from there" if state.exists() else ""
        reporter.say(f"stopped after {taken} of {steps} steps{kept}")
        return 130
    files = _write(request, found, names, columns, reporter)
    _report(request, found, columns, files, reporter)
    return 1 if reporter.failures else 0


def _by_ending(request: TransferRequest, file: Path | None) -> TransferRequest:
    """The request, with the kind of figure or film that the ending of `--output` names."""
    kind = "" if file is None else file.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if kind in FIGURES:
        if request.pictures and kind not in request.pictures:
            raise OptionError(f"--output {file} ends in .{kind}, and --format asks for another kind: leave one out")
        return replace(request, pictures=request.pictures or (kind,))
    return replace(request, pictures=request.pictures or ("png",), film=kind if kind in FILMS else request.film)


def _snapshots(request: TransferRequest) -> tuple[list[int], list[int]]:
    """The steps that the figure shows, and all at which maps are drawn."""
    from vitrail.counterfactual.transfer_result import usual_snapshots

    steps = request.question["steps"]
    columns = sorted(set(request.figure_steps or usual_snapshots(max(steps, 1))))
    if request.film == "none":
        if request.frame_interval is not None:
            raise OptionError(
                f"--frame-interval {request.frame_interval} is for a film, and --film none asks for none: leave one out"
            )
        return columns, columns
    every = request.frame_interval or max(1, -(-steps // FRAMES))
    return columns, sorted({*columns, *range(0, steps + 1, every), max(steps, 0)})


def _state(
    request: TransferRequest, names: OutputNames, model: "VisionModel", target: int | None, opposing: int | None
) -> Path:
    """The file that an interrupt leaves: one for each question, so that none is taken for another."""
    first = "predicted" if target is None else slug(model.class_name(target))
    second = "strongest" if opposing is None else slug(model.class_name(opposing))
    how = "-".join(f"{request.question[key]}" for key in ("optimiser", "lr", "constraint"))
    return names.path(
        Found(request.image, Path(request.image.stem)), f"transfer.{first}-to-{second}", "safetensors", f"{how}.state"
    )


def _write(
    request: TransferRequest, found: "Transfer", names: OutputNames, columns: Sequence[int], reporter: Reporter
) -> list[Path]:
    """The record first: from it the pictures can be drawn again. A film that fails takes nothing down with it."""
    from vitrail.plotting import save_figure, save_film

    what = "transfer." + "-to-".join(slug(found.class_name(index)) for index in (found.target, found.opposing))

    def path(kind: str) -> Path:
        return names.path(Found(request.image, Path(request.image.stem)), what, kind)

    files = [found.save(path("safetensors"))]
    files += [save_figure(found.plot(steps=columns), path(kind)) for kind in request.pictures]
    if request.film != "none":
        try:
            files.append(save_film(found, path(request.film)))
        except VitrailError as error:
            reporter.fail(str(path(request.film)), error)
    return files


def _report(
    request: TransferRequest, found: "Transfer", columns: Sequence[int], files: Sequence[Path], reporter: Reporter
) -> None:
    from vitrail.explanation import percent
    from vitrail.plotting.canvas import number

    if request.as_json:
        classes = [
            {
                "class": found.class_name(index),
                "index": index,
                "logits": found.curve(index).tolist(),
                "probabilities": [found.probability(index, step) for step in range(found.steps + 1)],
            }
            for index in found.classes
        ]
        document: dict[str, Any] = {
            "image": str(request.image),
            "model": found.metadata["model"],
            "metadata": dict(found.metadata),
            **request.question,
            "snapshots": list(found.snapshots),
            "classes": classes,
            "files": [str(path) for path in files],
        }
        show_json(document)
        return
    header = ["step"]
    for index in found.classes:
        header += [found.class_name(index), "its probability" if found.output.link else ""]
    rows = []
    for step in columns:
        row = [str(step)]
        for index in found.classes:
            share = found.probability(index, step)
            row += [number(float(found.logits[step, index])), "" if share is None else percent(share)]
        rows.append(row)
    show_table(header, rows)
    for path in files:
        reporter.say(f"written: {path}")
