"""`vitrail bench`: what an explanation costs on this machine, against the limit, stored maps and other libraries."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli import options as shared
from vitrail.cli.console import stages, stop
from vitrail.cli.many_values import ManyValues

__all__ = ["ManyNumbers", "bench_command"]


class ManyNumbers(ManyValues):
    """A command whose lists of models and numbers take all words up to the next option."""

    options = ("--model", "-m", "--sizes", "--batch", "--targets", "--along", "--methods")


def bench_command(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Plain ViTs of timm: vit_base_patch16_224, or tiny, small, base, large."),
    ] = None,
    sizes: Annotated[list[int] | None, typer.Option("--sizes", min=1, help="Sides of the images, in pixels.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Images in a pass.")] = None,
    targets: Annotated[list[int] | None, typer.Option("--targets", min=1, help="Targets of one image.")] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", help="As for `vitrail compare`. Default: all of one forward and one backward pass."),
    ] = None,
    along: Annotated[
        list[int] | None, typer.Option("--along", min=1, help="Sizes of time and memory against the tokens.")
    ] = None,
    along_model: Annotated[
        str | None, typer.Option("--along-model", help="The model of time and memory against the tokens.")
    ] = None,
    longest: Annotated[
        int | None, typer.Option("--longest", min=1, help="A size at which only memory is measured, of few methods.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small model and image, one round: does it run?")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Four models, four sizes, three batches: hours on a CPU.")
    ] = False,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Each times every row once.")] = None,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Peaks of memory.")] = True,
    clock: Annotated[
        str,
        typer.Option("--clock", help="wall; or processor: the time given to the process, where others run."),
    ] = "wall",
    checkpoint: shared.Checkpoint = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = shared.Precision.float32,
    seed: Annotated[int, typer.Option("--seed", help="Of the random images and weights.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A page (.md) whose measured part is replaced; the plot lies beside it."),
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Measure time and memory of explanations, each as a ratio within one run.

    Rows: the plain model, its limit (one forward and one backward pass without weight gradients), every method that
    takes as much, the same maps by stored attention, and other libraries on the same model, weights and images.
    """
    from dataclasses import replace

    from vitrail.benchmark import PRESETS, Results, bench
    from vitrail.benchmark.page import markdown, write_page
    from vitrail.cli.loading import named_device
    from vitrail.errors import VitrailError

    if quick and full:
        raise typer.BadParameter("give --quick or --full, not both", param_hint="--quick")
    if output is not None and output.suffix != ".md":
        raise typer.BadParameter(f"{output} is no page: name a file that ends in .md", param_hint="--output")
    preset = PRESETS["quick" if quick else "full" if full else "default"]
    if along and longest is None:
        preset = replace(preset, longest=None)
    given: dict[str, Any] = {
        "models": model and tuple(_full_name(name) for name in model),
        "sizes": sizes and tuple(sizes),
        "batches": batch and tuple(batch),
        "targets": targets and tuple(targets),
        "methods": methods and tuple(methods),
        "along": along and tuple(along),
        "longest": longest,
        "tokens": along_model and _full_name(along_model),
        "rounds": rounds,
        "checkpoint": checkpoint,
        "cross": True if sizes and len(sizes) > 1 else None,
    }

    def keep(results: Results) -> None:
        if output is not None:
            write_page(results, output)

    try:
        plan = replace(
            preset,
            memory=memory,
            clock=clock,
            device=named_device(device),
            dtype=dtype.value,
            seed=seed,
            **{name: value for name, value in given.items() if value is not None},
        )
        with stages() as progress:
            results = bench(plan, command=shlex.join(["vitrail", *sys.argv[1:]]), progress=progress, found=keep)
    except VitrailError as error:
        stop(error, as_json=as_json)
    typer.echo(json.dumps(results.as_json(), indent=2) if as_json else markdown(results))


def _full_name(model: str) -> str:
    """`base` is short for `vit_base_patch16_224`."""
    short = model.removeprefix("vit_")
    return f"vit_{short}_patch16_224" if short in ("tiny", "small", "base", "large") else model
