"""`vitrail bestiary …`: scenes of the built-in world, its models' accuracy, and scores of methods on them."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli.console import show, show_result, stages
from vitrail.cli.options import DEFAULT_OUTPUT, AsJson, FolderOutput, spelled

if TYPE_CHECKING:
    from vitrail.models import VisionModel

__all__ = ["group"]

group = typer.Typer(
    help="The built-in world of creatures with known parts: draw scenes, score models and methods on them.",
    no_args_is_help=True,
)

Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", help="Weights from your own training run. Default: the built-in ones."),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Built-in model: bestiary, or bestiary/ followed by deletion, pvt, swin or label-errors."
    ),
]
PERCENT = "{:.1f} %"

Kind = StrEnum("Kind", "single pair chimera intervention")  # what a scene shows


@group.command("draw", cls=spelled())
def draw_command(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="What a scene shows: one creature, two, one that is half each, or one with a part changed."
        ),
    ],
    output: FolderOutput = DEFAULT_OUTPUT,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of scenes.")] = 10,
    species: Annotated[
        list[str] | None,
        typer.Option("--species", "-s", help="Class of the creature; twice for pairs and chimeras. Default: random."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=16, help="Side of the image in pixels.")] = 384,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the scenes.")] = 0,
) -> None:
    """Draw scenes as PNG files, named by number and classes."""
    from PIL import Image

    from vitrail.bestiary import render, sample_scene
    from vitrail.cli.inputs import destination
    from vitrail.files import atomic_write

    folder = destination(output).folder
    for index in range(count):
        scene = sample_scene(str(kind), (seed, index), species=tuple(species) if species else None)
        path = folder / f"{kind}-{index:04d}-{'-'.join(scene.labels)}.png"
        with atomic_write(path) as file:
            Image.fromarray(render(scene, size).image).save(file, format="png")
        show(path)


@group.command("accuracy", cls=spelled())
def accuracy_command(
    model: ModelName = "bestiary",
    checkpoint: Checkpoint = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of held-out scenes of each kind.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Measure the model's accuracy on held-out scenes: the class of singles, both classes of pairs."""
    from vitrail.bestiary.model import measure_accuracy

    loaded = _load(model, checkpoint)
    found = measure_accuracy(loaded.module, count=count)
    header = ("model", "singles: class on top", "pairs: both on top", "scenes of each")
    row = (model, PERCENT.format(100 * found.single), PERCENT.format(100 * found.pair), found.scenes)
    show_result({"model": model, **found._asdict()}, header, [row], as_json=as_json)


@group.command("score", cls=spelled(("--methods",)))
def score_command(
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="Methods by name or group, as for `vitrail compare`. Default: the paper's.",
        ),
    ] = None,
    model: ModelName = "bestiary",
    checkpoint: Checkpoint = None,
    gradient: Annotated[
        list[str] | None,
        typer.Option(
            "--gradient",
            help="Gradient mode: full, leaf, libra, gim, or compete (libra with class competition); repeat for "
            "several. Default: all but gim.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=2, help="Number of scenes of each kind.")] = 200,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Random seed of the scenes. Default: that of the published scores.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score methods on scenes with known evidence: mean [95 % bootstrap interval] of every measure."""
    from vitrail.evaluate import MEASURES, score

    asked: dict[str, Any] = {} if seed is None else {"seed": seed}
    if methods:
        asked["methods"] = methods
    loaded = _load(model, checkpoint)
    with stages() as report:
        lines = score(
            loaded,
            gradients=gradient or ["full", "leaf", "libra", "compete"],
            count=count,
            progress=report,
            **asked,
        )
    table = [
        {
            "method": line.method,
            "gradient": line.gradient,
            "signed": line.signed,
            **{name: interval._asdict() for name, interval in line.measures.items() if interval.size},
        }
        for line in lines
    ]
    meanings = {name: measure._asdict() for name, measure in MEASURES.items()}
    document = {"model": model, "scenes": count, "measures": meanings, "table": table}
    rows = [(line.label, *map(str, line.measures.values())) for line in lines]
    show_result(document, ("method", *MEASURES), rows, as_json=as_json)


@group.command("label-errors", cls=spelled(("--methods",), method="--methods"))
def label_errors_command(
    methods: Annotated[list[str] | None, typer.Option("--methods", help="Methods by name. Default: complete.")] = None,
    gradient: Annotated[str, typer.Option("--gradient", help="Gradient mode: full, leaf, libra or gim.")] = "full",
    count: Annotated[int, typer.Option("--count", "-n", min=2, help="Number of images.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Compare the clean model with the one trained on label errors: for which class does the iconic part argue?

    Images of the true class are explained against the class that they were mislabelled as. "Wrong side" is how often
    the part that distinguishes the two argues for the wrong one, in the map and in truth (by leaving it out).
    """
    from vitrail.evaluate import planted_errors

    found = [
        line
        for name in ("bestiary", "bestiary/label-errors")
        for line in planted_errors(_load(name, None), methods or ["complete"], gradient=gradient, count=count)
    ]
    document = [
        {
            "model": line.model,
            "method": line.method,
            "wrong_side": line.wrong_side._asdict(),
            "truly_wrong": line.truly_wrong._asdict(),
        }
        for line in found
    ]
    header = ("model", "method", "on the wrong side in the map", "and in truth")
    rows = [(line.model, line.method, str(line.wrong_side), str(line.truly_wrong)) for line in found]
    show_result(document, header, rows, as_json=as_json)


def _load(name: str, checkpoint: Path | None) -> "VisionModel":
    from vitrail.errors import UnknownModelError
    from vitrail.models import load

    if name.partition("/")[0] != "bestiary":
        raise UnknownModelError(
            f"{name} knows no creatures: give bestiary, or bestiary/ followed by deletion, pvt, swin or label-errors"
        )
    return load(name, checkpoint=checkpoint)
