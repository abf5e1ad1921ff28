"""The page around the pictures: one HTML file without scripts, fonts or addresses from elsewhere."""

import os
from collections.abc import Callable
from pathlib import Path

from vitrail.bestiary import CLASS_NAMES
from vitrail.demo.chapters import chapters, tiles
from vitrail.evaluate import MEASURES, score
from vitrail.files import atomic_write, writable_folder
from vitrail.models import load
from vitrail.render.web import web_page

__all__ = ["write_demo"]

Progress = Callable[[str, int, int], None]


def write_demo(folder: str | os.PathLike[str], *, count: int = 30, progress: Progress | None = None) -> Path:
    """Draw the demonstration into `folder`, score methods on `count` scenes of each kind, and return the page.

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
    for chapter in chapters(model, mistaught, output):
        parts.append(chapter)
        report("drawing pictures", len(parts), 5)
    gallery = list(tiles(model, output))
    report("drawing pictures", 5, 5)
    lines = score(model, gradients=["full", "libra"], count=count, progress=report)
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
