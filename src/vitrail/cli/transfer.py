"""`vitrail transfer`: a class's logit lowered by changing attention alone, and the maps on the way."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import Reporter, show_result
from vitrail.cli.image_run import load_named
from vitrail.cli.inputs import Found, OutputNames, destination, slug
from vitrail.errors import ImageError, OptionError, VitrailError

if TYPE_CHECKING:
    from vitrail.counterfactual.transfer_result import Transfer

__all__ = ["transfer_command"]

FIGURES = ("png", "jpg", "pdf", "svg")
FILMS = ("gif", "mp4")
FRAMES = 60  # about as many as a film gets unless `--frame-interval` says otherwise


Optimiser = StrEnum("Optimiser", "sgd adam")
Constraint = StrEnum("Constraint", "none clamp softmax")
Film = StrEnum("Film", "gif webp mp4 none")


def transfer_command(
    image: shared.ImageFile,
    model: shared.ModelName,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", help="Class whose logit is lowered, by name or index. Default: the predicted class."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", help="Class whose map is drawn too, by name or index. Default: the strongest other class."
        ),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="Further class to draw; repeat for several. Default: none.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Number of steps of gradient descent.")] = 50,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 4e-4,
    optimiser: Annotated[Optimiser, typer.Option("--optimiser", help="Optimiser: plain gradient descent or Adam.")] = (
        Optimiser.sgd
    ),
    constraint: Annotated[
        Constraint,
        typer.Option("--constraint", help="Constraint on attention. clamp: not negative; softmax: rows sum to one."),
    ] = Constraint.none,
    figure_step: Annotated[
        list[int] | None,
        typer.Option(
            "--figure-step", help="Step drawn in the figure; repeat for several. Default: 0, 5, 10, 20, 50, last."
        ),
    ] = None,
    frame_interval: Annotated[
        int | None,
        typer.Option(
            "--frame-interval", min=1, help="Steps between two frames of the film. Default: chosen for about 60 frames."
        ),
    ] = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    output: shared.Output = shared.DEFAULT_OUTPUT,
    format_: shared.Figures = None,
    film: Annotated[Film, typer.Option("--film", help="Format of the film; mp4 needs ffmpeg.")] = Film.gif,
    resize: shared.Resize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again instead of resuming an interrupted run.")
    ] = False,
    as_json: shared.AsJson = False,
) -> bool:
    """Lower the logit of a class by gradient descent on all attention maps, and draw how the maps change.

    OUTPUT gets a figure (classes by steps, with curves of the logits), a film, and a .safetensors record of the run.
    Ctrl-C saves the state of the run there and sets exit code 130; the same command resumes it, with identical numbers.
    Exit code 1: the image cannot be read. Exit code 2: the question is invalid.
    """
    from vitrail.counterfactual import transfer
    from vitrail.plotting.film import check_film

    place = destination(output, (*FIGURES, *FILMS, "safetensors"))
    figures, film_kind = _kinds(place.file, shared.kinds(format_), str(film))
    columns, snapshots = _snapshots(steps, figure_step or [], frame_interval, film_kind)
    if film_kind != "none":
        check_film(f"film.{film_kind}")  # before the work: there may be no ffmpeg
    original = Found(image, Path(image.stem))
    names = OutputNames(place.folder, [original], place.file)
    how = shared.how_to_load(device, dtype, None, output_kind, num_classes, class_names)
    loaded = load_named(model, checkpoint, resize=resize, **how)
    target_index, opposing, *others = (
        None if name is None else loaded.class_index(name) for name in (target, against, *(also or []))
    )
    question = {"steps": steps, "lr": lr, "optimiser": str(optimiser), "constraint": str(constraint)}
    # One state for each question, so that none is taken for another.
    first = "predicted" if target_index is None else slug(loaded.class_name(target_index))
    second = "strongest" if opposing is None else slug(loaded.class_name(opposing))
    settings = "-".join(f"{question[key]}" for key in ("optimiser", "lr", "constraint"))
    state = names.path(original, f"transfer.{first}-to-{second}", "safetensors", f"{settings}.state")
    if restart:
        state.unlink(missing_ok=True)
    reporter = Reporter(as_json=as_json)
    taken = 0

    def progress(now: int, _: int) -> None:
        nonlocal taken
        reporter.advance(now - taken)
        taken = now

    try:
        with reporter.working(steps, "changing attention"):
            found = transfer(
                loaded,
                image,
                target_index,
                opposing,
                also=[index for index in others if index is not None],
                snapshots=snapshots,
                progress=progress,
                state=state,
                **question,
            )
    except ImageError as error:
        reporter.fail(str(image), error)
        return True
    except KeyboardInterrupt:
        kept = f": {state} is kept, and the same command resumes from it" if state.exists() else ""
        reporter.say(f"stopped after {taken} of {steps} steps{kept}")
        raise typer.Exit(130) from None
    what = "transfer." + "-to-".join(slug(found.class_name(index)) for index in (found.target, found.opposing))
    kinds = ("safetensors", *figures, *(() if film_kind == "none" else (film_kind,)))
    paths = {kind: names.path(original, what, kind) for kind in kinds}
    files = _write(found, paths, columns, reporter)
    about = {"image": str(image), "model": found.metadata["model"], "metadata": dict(found.metadata), **question}
    document = {**about, **_record(found), "files": [str(path) for path in files]}
    show_result(document, *_table(found, columns), as_json=as_json)
    for path in () if as_json else files:
        reporter.say(f"written: {path}")
    return bool(reporter.failures)


def _kinds(file: Path | None, figures: tuple[str, ...], film: str) -> tuple[tuple[str, ...], str]:
    """Returns the kinds of figure and of film: those asked for, and the one that the suffix of `--output` names."""
    kind = "" if file is None else file.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if kind in FIGURES:
        if figures and kind not in figures:
            raise OptionError(f"--output {file} ends in .{kind}, and --format asks for another kind: leave one out")
        return figures or (kind,), film
    return figures or ("png",), kind if kind in FILMS else film


def _snapshots(steps: int, figure_steps: Sequence[int], interval: int | None, film: str) -> tuple[list[int], list[int]]:
    """Returns the steps that the figure shows, and all steps at which maps are drawn."""
    from vitrail.counterfactual.transfer_result import usual_snapshots

    columns = sorted(set(figure_steps or usual_snapshots(max(steps, 1))))
    if film == "none":
        if interval is not None:
            raise OptionError(
                f"--frame-interval {interval} is for a film, and --film none asks for none: leave one out"
            )
        return columns, columns
    every = interval or max(1, -(-steps // FRAMES))
    return columns, sorted({*columns, *range(0, steps + 1, every), max(steps, 0)})


def _write(found: "Transfer", paths: dict[str, Path], columns: Sequence[int], reporter: Reporter) -> list[Path]:
    """Writes record, figures and film; the record comes first, and a film that fails loses nothing else."""
    from vitrail.plotting import save_figure, save_film

    files = [found.save(paths.pop("safetensors"))]
    for kind, path in paths.items():
        if kind in FIGURES:
            files.append(save_figure(found.plot(steps=columns), path))
            continue
        try:
            files.append(save_film(found, path))
        except VitrailError as error:
            reporter.fail(str(path), error)
    return files


def _record(found: "Transfer") -> dict[str, Any]:
    classes = [
        {
            "class": found.class_name(index),
            "index": index,
            "logits": found.curve(index).tolist(),
            "probabilities": [found.probability(index, step) for step in range(found.steps + 1)],
        }
        for index in found.classes
    ]
    return {"snapshots": list(found.snapshots), "classes": classes}


def _table(found: "Transfer", columns: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    from vitrail.outputs import percent
    from vitrail.plotting.canvas import number

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
    return header, rows
