"""`vitrail bench`: time and memory of an explanation, compared with the limit, stored maps and other libraries."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import show, show_json, stages

__all__ = ["bench_command"]


def bench_command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Plain ViT of timm, as vit_base_patch16_224, or tiny, small, base, large; repeatable. Default: base.",
        ),
    ] = None,
    sizes: Annotated[
        list[int] | None, typer.Option("--sizes", min=1, help="Image sizes (side in pixels). Default: 224.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option("--batch-size", "-b", min=1, help="Numbers of images per pass. Default: 8.")
    ] = None,
    targets: Annotated[
        list[int] | None, typer.Option("--targets", min=1, help="Numbers of targets per image. Default: 1, 5, 20.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            help="Methods by name or group, as for `vitrail compare`. Default: all of one forward and backward pass.",
        ),
    ] = None,
    along: Annotated[
        list[int] | None,
        typer.Option(
            "--along", min=1, help="Image sizes of the measurement against the number of tokens. Default: 224 to 1024."
        ),
    ] = None,
    along_model: Annotated[
        str | None,
        typer.Option(
            "--along-model",
            help="Model of the measurement against the number of tokens. Default: vit_small_patch16_224.",
        ),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(
            "--longest", min=1, help="Image size at which only memory is measured, of a few methods. Default: 2048."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure a small model and image once, as a check.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Measure four models, four sizes, three batch sizes: hours on a CPU.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Number of rounds; each times every row once. Default: 5.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure peak memory.")] = True,
    clock: Annotated[
        str,
        typer.Option("--clock", help="Clock: wall, or processor for a machine with other load."),
    ] = "wall",
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="File of the model's weights. Default: random weights.")
    ] = None,
    num_classes: shared.NumClasses = None,
    class_names: shared.ClassNamesFile = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of images and weights.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Page (.md) whose measurements are replaced, or a folder for bench.md and its plot. Default: none.",
        ),
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Measure time and memory of explanations, each as a ratio within one run.

    Rows: the plain model, the limit (one forward and one backward pass without weight gradients), every method of that
    cost, the same maps from stored attention, and other libraries on the same model, weights and images.
    """
    from dataclasses import replace

    from vitrail.benchmark import PRESETS, Results, bench
    from vitrail.benchmark.page import markdown, write_page
    from vitrail.cli.image_run import named_device
    from vitrail.cli.inputs import destination

    if quick and full:
        raise typer.BadParameter("give --quick or --full, not both", param_hint="--quick")
    preset = PRESETS["quick" if quick else "full" if full else "default"]
    if along and longest is None:
        preset = replace(preset, longest=None)
    given: dict[str, Any] = {
        "models": model and tuple(_full_name(name) for name in model),
        "sizes": sizes and tuple(sizes),
        "batches": batch_size and tuple(batch_size),
        "targets": targets and tuple(targets),
        "methods": methods and tuple(methods),
        "along": along and tuple(along),
        "longest": longest,
        "tokens": along_model and _full_name(along_model),
        "rounds": rounds,
        "checkpoint": checkpoint,
        "num_classes": num_classes,
        "class_names": class_names,
        "cross": True if sizes and len(sizes) > 1 else None,
    }

    def keep(results: Results) -> None:
        if page is not None:
            write_page(results, page)

    place = None if output is None else destination(output, ("md",))
    page = None if place is None else place.file or place.folder / "bench.md"
    plan = replace(
        preset,
        memory=memory,
        clock=clock,
        device=named_device(device),
        dtype=str(dtype),
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    with stages() as progress:
        results = bench(plan, command=shlex.join(["vitrail", *sys.argv[1:]]), progress=progress, found=keep)
    if as_json:
        show_json(results.as_json())
    else:
        for line in markdown(results).splitlines():
            show(line)


def _full_name(model: str) -> str:
    """Returns the name in timm: `base` is short for `vit_base_patch16_224`."""
    short = model.removeprefix("vit_")
    return f"vit_{short}_patch16_224" if short in ("tiny", "small", "base", "large") else model
