"""What a view gives back: HTML for the page, and the files that can be taken home."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Answer", "file_of", "files_of", "files_of_figure"]

File = Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class Answer:
    """The HTML of a view; the files by their suffix, each made when it is asked for; and a name for them.

    `facts` are what the code that gives the same view must know: the gradient mode that was chosen, say. `essence` is
    that of the question that was answered.
    """

    html: str
    files: Mapping[str, File] = field(default_factory=dict)
    name: str = "vitrail"
    facts: Mapping[str, Any] = field(default_factory=dict)
    essence: tuple[Any, ...] = ()


def file_of(write: Callable[[Path], object], suffix: str) -> bytes:
    """The bytes that `write` puts into a file of that suffix, which is gone afterwards.

    >>> file_of(lambda path: path.write_text("glass"), "txt")
    b'glass'
    """
    with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
        path = Path(folder, f"file.{suffix}")
        write(path)
        return path.read_bytes()


def files_of_figure(draw: Callable[[], "Figure"]) -> dict[str, File]:
    """A figure as PNG and SVG."""
    from ..plotting.saving import save_figure

    return {
        "png": lambda: file_of(lambda path: save_figure(draw(), path), "png"),
        "svg": lambda: file_of(lambda path: save_figure(draw(), path), "svg"),
    }


def files_of(ex: Explanation, draw: Callable[[], "Figure"] | None = None) -> dict[str, File]:
    """An explanation as PNG, SVG and safetensors."""
    figures = files_of_figure(ex.plot if draw is None else draw)
    return figures | {"safetensors": lambda: file_of(ex.save, "safetensors")}
