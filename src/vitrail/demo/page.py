"""The page around the pictures: one HTML file without scripts, fonts or addresses from elsewhere."""

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from vitrail.bestiary import CLASS_NAMES
from vitrail.demo.chapters import chapters, tiles
from vitrail.evaluate import MEASURES, score
from vitrail.files import atomic_write, writable_folder
from vitrail.models import load
from vitrail.plotting.saving import web_page

__all__ = ["write_demo"]

Progress = Callable[[str, int, int], None]


def write_demo(
    folder: str | os.PathLike[str], *, count: int = 30, quick: bool = False, progress: Progress | None = None
) -> Path:
    """Draws the demonstration into `folder`, scores methods on `count` scenes of each kind, and returns the page.

    `quick` draws the first picture alone: two creatures and three questions, without other methods and scores.
    Everything comes from the package: no network, no file of the user. Raises `OutputFileError` where the folder
    cannot be written, `CheckpointError` where the package's weights are damaged.

    >>> import tempfile
    >>> write_demo(tempfile.mkdtemp(), count=2).name  # doctest: +SKIP
    'index.html'
    """
    report = progress if progress is not None else lambda *_: None
    output = writable_folder(folder)
    model, mistaught = load("bestiary"), load("bestiary/label-errors")
    parts = []
    steps = 1 if quick else 5
    for chapter in islice(chapters(model, mistaught, output), 1 if quick else None):
        parts.append(chapter)
        report("drawing pictures", len(parts), steps)
    gallery = [] if quick else list(tiles(model, output))
    report("drawing pictures", steps, steps)
    lines = [] if quick else score(model, gradients=["full", "libra"], count=count, progress=report)
    page = web_page(
        "vitrail.demo",
        chapters=parts,
        tiles=gallery,
        lines=lines,
        measures=MEASURES,
        count=count,
        classes=CLASS_NAMES,
        model=model,
        parameters=sum(p.numel() for p in model.module.parameters()),
    )
    path = output / "index.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path
