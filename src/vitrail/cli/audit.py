"""`vitrail audit`: labels that are probably wrong, with the maps that show why, and the page to work through them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli import runs
from vitrail.cli.console import Terminal, progress_of, resumable, show, show_json, show_table
from vitrail.cli.image_run import load_named
from vitrail.errors import OptionError

if TYPE_CHECKING:
    from vitrail.audit import Audit

__all__ = ["audit_command"]

SHOWN = 10  # suspects and pairs in the tables


def audit_command(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Data set with labels: a folder, a list file, hf:NAME, or bestiary."),
    ] = None,
    model: shared.OptionalModelName = None,
    checkpoint: shared.Checkpoint = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    output_kind: shared.OutputKind = None,
    labels: runs.Labels = None,
    boxes: runs.Boxes = None,
    method: Annotated[str, typer.Option("--method", help="Method of the maps, one that tells classes apart.")] = (
        "complete"
    ),
    suspects: Annotated[
        int, typer.Option("--suspects", min=0, help="Largest number of images to review, the most doubtful.")
    ] = 500,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs",
            metavar="NUMBER | SHOWN:OTHER",
            help="Number of class pairs to test, the most confusable ones, or pairs of classes. Default: 50.",
        ),
    ] = None,
    pair_images: Annotated[
        int, typer.Option("--pair-images", min=1, help="Largest number of images that a pair is tested on.")
    ] = 24,
    typical: Annotated[int, typer.Option("--typical", min=0, help="Number of typical images of each class.")] = 6,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            min=2,
            help="Folds for out-of-sample probabilities, where the model was trained on these images. Default: none.",
        ),
    ] = None,
    limit: shared.Limit = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the audit.")] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the audit, created if missing; an interrupted one in it is resumed."
        ),
    ] = Path("audit"),
    block_size: runs.BlockSize = 16,
    batch_size: runs.BatchSize = None,
    engine: runs.Engine = "local",
    address: runs.Address = None,
    workers: runs.Workers = None,
    gpus: runs.Gpus = None,
    review: Annotated[
        Path | None,
        typer.Option("--review", metavar="FOLDER", help="Open the page to work through the suspects of an audit."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="With --review: write the decisions to a .csv or .parquet file, and stop."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port of the page; 0: any free port.")
    ] = 7861,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Admit every user of this machine, without the token in the address.")
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    as_json: shared.AsJson = False,
) -> None:
    """Find labels that are probably wrong, and class pairs that the training labels probably mixed up.

    The same command resumes an interrupted audit. `vitrail audit --review OUTPUT` opens a page to work through the
    suspects by keyboard; --export writes what was decided there.
    """
    if review is not None:
        if data is not None:
            raise typer.BadParameter("an audit that is reviewed has its data: leave DATA out", param_hint="--review")
        _review(review, export, port=port, no_token=no_token, no_browser=no_browser)
        return
    if export is not None:
        raise typer.BadParameter("the decisions of a review are exported: give --review, too", param_hint="--export")
    if not data or not model:
        raise typer.BadParameter("give DATA and --model (or VITRAIL_MODEL), or --review FOLDER", param_hint="DATA")
    cluster = runs.cluster_options(engine, address, workers, gpus)
    known = {"labels": labels, "boxes": boxes}
    _run(
        data,
        model,
        checkpoint,
        load=shared.how_to_load(device, dtype, size, output_kind, num_classes, class_names),
        output=output,
        as_json=as_json,
        question={
            "method": method,
            "suspects": suspects,
            "pairs": _pairs(pairs),
            "pair_images": pair_images,
            "typical": typical,
            "folds": folds,
            "data_options": {key: value for key, value in known.items() if value is not None},
            "limit": limit,
            "seed": seed,
            "block": block_size,
            "batch_size": batch_size,
            "engine": engine,
            "engine_options": cluster,
        },
    )


def _pairs(words: list[str] | None) -> int | list[tuple[str, str]]:
    """Returns a number, or the pairs that are named.

    >>> _pairs(["20"]), _pairs(["bald eagle:kite", "7:8"])
    (20, [('bald eagle', 'kite'), ('7', '8')])
    """
    if not words:
        return 50
    if len(words) == 1 and words[0].isdecimal():
        return int(words[0])
    found = []
    for word in words:
        shown, colon, other = word.partition(":")
        if not (colon and shown.strip() and other.strip()):
            raise OptionError(f"--pairs {word}: give a number, or pairs of classes such as 'bald eagle:kite'")
        found.append((shown.strip(), other.strip()))
    return found


def _run(
    data: str,
    model: str,
    checkpoint: Path | None,
    *,
    load: Mapping[str, Any],
    output: Path,
    as_json: bool,
    question: Mapping[str, Any],
) -> None:
    from vitrail.audit import audit
    from vitrail.evaluate.engines import local_rank

    rank = local_rank()
    vision = load_named(model, checkpoint, **runs.on_own_device(load, rank))
    console = Terminal(stderr=True, quiet=bool(rank))
    with _progress(console, output) as follow:
        found = audit(vision, data, output=output, progress=follow, **question)
    if rank:  # the first process speaks for all
        return
    if as_json:
        show_json(_document(found))
        return
    for note in found.notes:
        show(f"note: {note}", err=True)
    _show(found)
    show(f"{len(found.suspects)} suspects among {len(found.ranked)} images; vitrail audit --review {output} shows them")


@contextmanager
def _progress(console: Terminal, output: Path) -> Iterator[Any]:
    """Yields the callback (what, done, total) of an audit: a bar for each pass."""
    with ExitStack() as stack:
        bars: dict[str, Any] = {}
        told = stack.enter_context(resumable(output, lambda *_: None, console))

        def follow(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = stack.enter_context(progress_of(console, what))
            bars[what](done, total)
            told(done, total)

        yield follow


def _show(found: "Audit") -> None:
    name = found.class_name
    if found.suspects:
        rows = [
            (
                one.source,
                name(one.given) if one.given is not None else "",
                name(one.suggested) if one.suggested is not None else "",
                f"{one.margin:+.2f}",
                "yes" if one.issue else "",
            )
            for one in found.suspects[:SHOWN]
        ]
        show_table(("suspect", "labelled", "the model says", "margin", "confident learning"), rows)
    mixed = [pair for pair in found.pairs if pair.adjusted < 0.05][:SHOWN]
    if mixed:
        rows = [
            (
                name(pair.shown),
                name(pair.other),
                f"{pair.share:.0%} [{pair.low:.0%}, {pair.high:.0%}]",
                f"{pair.adjusted:.2g}",
                str(pair.images),
            )
            for pair in mixed
        ]
        show_table(("what is typical of", "speaks for", "in", "adjusted p", "images"), rows)
    elif found.pairs:
        show(f"in none of {len(found.pairs)} pairs of classes does what is typical of one speak for the other")


def _document(found: "Audit") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "output": str(found.folder),
        "images": len(found.ranked),
        "suspects": [asdict(one) for one in found.suspects],
        "pairs": [asdict(pair) for pair in found.pairs],
        "duplicates": [[one.source for one in group] for group in found.duplicates],
        "notes": list(found.notes),
    }


def _review(folder: Path, export: Path | None, **where: Any) -> None:
    if export is None:
        from vitrail.cli.review import review

        review(folder, **where)
        return
    from vitrail.audit import Decisions, read_audit
    from vitrail.audit.decisions import export_decisions

    found = read_audit(folder)
    decisions = Decisions(folder, [one.image for one in found.suspects])
    export_decisions(found, decisions, export)
    decided = sum(one.image in decisions.current for one in found.suspects)
    show(f"{decided} of {len(found.suspects)} suspects are decided: {export}")
