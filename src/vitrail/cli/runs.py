"""What the commands share that work through a data set: its labels, the engine, and each process's device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from vitrail.errors import OptionError

__all__ = [
    "Address", "BatchSize", "BlockSize", "Boxes", "Engine", "Gpus", "Labels", "Workers", "cluster_options",
    "on_own_device",
]  # fmt: skip

Boxes: TypeAlias = Annotated[
    Path | None,
    typer.Option("--boxes", help="Table of bounding boxes, or folder of XML files. Default: those of the data set."),
]
Labels: TypeAlias = Annotated[
    Path | None, typer.Option("--labels", help="Table of files and classes. Default: the labels of the data set.")
]
BlockSize: TypeAlias = Annotated[
    int, typer.Option("--block-size", min=1, help="Number of images that are measured and written together.")
]
BatchSize: TypeAlias = Annotated[
    int | None, typer.Option("--batch-size", "-b", min=1, help="Images per pass. Default: chosen by the device.")
]
Engine: TypeAlias = Annotated[str, typer.Option("--engine", help="Engine: local (one process, or torchrun) or ray.")]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--address", help="Address of the Ray cluster, or auto to find it. Default: a cluster on this machine."
    ),
]
Workers: TypeAlias = Annotated[
    int | None, typer.Option("--workers", min=1, help="Largest number of Ray actors. Default: as many as fit.")
]
Gpus: TypeAlias = Annotated[
    float | None,
    typer.Option("--gpus", help="GPUs per Ray actor; 0.5 lets two actors share one. Default: 1 on CUDA."),
]


def cluster_options(engine: str, address: str | None, workers: int | None, gpus: float | None) -> dict[str, Any]:
    """Returns the options of the engine that are given.

    Raises:
        OptionError: for options of Ray with another engine.

    >>> cluster_options("ray", None, 2, None)
    {'workers': 2}
    """
    given = {"address": address, "workers": workers, "gpus": gpus}
    given = {key: value for key, value in given.items() if value is not None}
    if given and engine != "ray":
        raise OptionError(f"--{next(iter(given))} is for --engine ray, and the engine is {engine}")
    return given


def on_own_device(load: Mapping[str, Any], rank: int | None) -> Mapping[str, Any]:
    """Returns how to load the model in one of torchrun's processes: on a GPU of its own where there are GPUs."""
    if rank is None or load["device"] not in ("auto", "cuda"):
        return load
    import torch

    return {**load, "device": f"cuda:{rank}" if torch.cuda.is_available() else "cpu"}
