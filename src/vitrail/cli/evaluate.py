"""`vitrail evaluate`: methods measured by protocols on a data set, into a folder that can be gone on with."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show_table, stop
from vitrail.cli.explain import split_option
from vitrail.cli.many_values import ManyValues

__all__ = ["ManyNames", "evaluate_command"]


class ManyNames(ManyValues):
    """A command whose `--methods` and `--protocols` take all words up to the next option."""

    options = ("--methods", "--protocols")


def evaluate_command(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A folder, a list file, hf:NAME, mosaic:DATA, stitched:DATA, or bestiary."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A name that `vitrail models` lists.")] = None,
    checkpoint: shared.Checkpoint = None,
    output_kind: shared.OutputKind = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="Names, or groups: all, fast, signed …; -NAME takes out; complete:libra asks in a gradient mode. "
            "Default: complete.",
        ),
    ] = None,
    protocols: Annotated[
        list[str] | None, typer.Option("--protocols", help="What --list shows. Default: those of the preset.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A paper's way of measuring: bi (default), chefer, rise, tis, seed.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME.OPTION=VALUE", help="An option of a method or a protocol; several: repeat."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="The class explained: label or predicted. Default: the preset's."),
    ] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", help="model: the model's own preprocessing; squash: whole, without a crop.")
    ] = None,
    boxes: Annotated[Path | None, typer.Option("--boxes", help="A table of boxes, or a folder of XML files.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="A table of files and classes.")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="A folder of masks.")] = None,
    category: Annotated[
        int | None, typer.Option("--category", help="The value of a mask that is the object. Default: all but 0.")
    ] = None,
    guide: Annotated[str | None, typer.Option("--guide", help="The picture beside which stitched: lays each.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many images at most, evenly over the classes.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's folder; a part of the run is gone on with.")
    ] = Path("run"),
    block: Annotated[int, typer.Option("--block", min=1, help="Images that are measured and written together.")] = 16,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, help="Rows in one pass. Default: by the device.")
    ] = None,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Of so many images the report gets pictures.")] = 500,
    engine: Annotated[str, typer.Option("--engine", help="local (torchrun shares it out) or ray.")] = "local",
    address: Annotated[str | None, typer.Option("--address", help="Of the Ray cluster; auto finds it.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Ray's actors at most.")] = None,
    gpus: Annotated[
        float | None, typer.Option("--gpus", help="Of each actor; 0.5 lets two share one. Default: 1 on CUDA.")
    ] = None,
    size: shared.InputSize = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    list_: Annotated[bool, typer.Option("--list", help="List the protocols and presets, and stop.")] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Measure how far methods can be trusted: every protocol, one row a number, in Parquet files.

    Interrupt it whenever you like, and start it again: it goes on where it was. `vitrail report OUTPUT` draws the rest.
    """
    from vitrail.cli.evaluating import run
    from vitrail.errors import OptionError, VitrailError

    if list_:
        _list(as_json)
        return
    if not data or not model:
        raise typer.BadParameter("give DATA and --model, or --list", param_hint="DATA")
    words: dict[str, dict[str, str]] = {}
    for text in option or []:
        name, value = split_option(text, "NAME.OPTION=VALUE, as in tis.masks=256", dotted=True)
        owner, _, own = name.partition(".")
        words.setdefault(owner, {})[own] = value
    asked = [name for text in protocols or [] for name in text.split(",") if name]
    known: dict[str, Any] = {"boxes": boxes, "labels": labels, "masks": masks, "guide": guide, "category": category}
    cluster = {"address": address, "workers": workers, "gpus": gpus}
    cluster = {key: value for key, value in cluster.items() if value is not None}
    try:
        if cluster and engine != "ray":
            raise OptionError(f"--{next(iter(cluster))} is for --engine ray, and the engine is {engine}")
        if protocols and not asked:
            raise OptionError("--protocols names none: give names that --list shows, or leave it out for the preset's")
        failed = run(
            data,
            model,
            checkpoint,
            load=shared.how_to_load(device, dtype, size, output_kind),
            words=words,
            as_json=as_json,
            question={
                "methods": methods or ["complete"],
                "protocols": asked,
                "preset": preset,
                "target": target,
                "fit": fit,
                "data_options": {key: value for key, value in known.items() if value is not None},
                "limit": limit,
                "seed": seed,
                "output": output,
                "block": block,
                "batch_size": batch_size,
                "keep": keep,
                "engine": engine,
                "engine_options": cluster,
            },
        )
    except VitrailError as error:
        stop(error, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


def _list(as_json: bool) -> None:
    from vitrail.evaluate.presets import PRESETS
    from vitrail.evaluate.protocols import list_protocols

    found = [
        {
            "protocol": info.name,
            "needs": list(info.needs),
            "options": {name: str(value) for name, value in info.options.items()},
            "measures": info.summary,
            "presets": [name for name, preset in PRESETS.items() if info.name in preset.protocols],
        }
        for info in list_protocols()
    ]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [
        (
            one["protocol"],
            ", ".join(one["needs"]),
            ", ".join(one["presets"]),
            ", ".join(f"{name}={value}" for name, value in one["options"].items()),
            one["measures"],
        )
        for one in found
    ]
    show_table(("protocol", "needs", "presets", "options", "measures"), rows)
