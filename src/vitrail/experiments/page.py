"""Draws the paper's figures from an album of photographs, and puts claim, figure and verdict side by side on a page.

Each figure leaves `figN.json` with its question and its numbers. A figure whose question is the same is not drawn
again, but its verdict is: that is made of the numbers.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluate.manifest import digest_of
from ..files import atomic_write
from ..guidance.typical import TypicalPictures
from ..models.vision_model import VisionModel
from ..plotting.saving import picture_address, web_page
from .paper import DIAGRAMS, FIGURES, Ask, PaperFigure, Verdict
from .photographs import Album
from .registry import FIRST, Question, find_experiment

__all__ = ["Drawn", "draw_figure", "questions", "weights_of", "write_page"]

WIDEST, QUALITY = 1600, 85  # of the pictures in the page, in pixels; each leads to its file


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn, or could not be: then `error` says why, and there are no results."""

    figure: PaperFigure
    results: tuple[Mapping[str, Any], ...] = ()
    photographs: tuple[str, ...] = ()
    again: bool = False  # it was there already
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        """Returns what the numbers say of the figure's claim."""
        return Verdict("not drawn", self.error) if self.error else self.figure.verdict(self.results)

    @property
    def files(self) -> tuple[Path, ...]:
        """Returns the figure's pictures, each once: sheets where there are some."""
        return tuple(dict.fromkeys(Path(one.get("sheet", one["file"])) for one in self.results))


def questions(figure: PaperFigure, album: Album, base: Question) -> tuple[list[Question], tuple[str, ...]]:
    """Returns the questions of a figure, filled in from an album, and which photographs were taken, and why.

    Raises:
        ExperimentError: where the album lacks a photograph.
    """
    reasons: list[str] = []
    base = replace(base, prefix=f"{figure.label}.", framed=figure.framed, methods=base.methods or figure.methods)
    if figure.guide is not None:
        guide = album.showing(figure.guide)
        base = replace(base, guide=guide.path)
        reasons.append(f"guide {guide.reason}")
    if not figure.asks:
        reasons.append(f"from the {len(album.paths)} in {album.places}, evenly over their classes")
        return [replace(base, images=album.paths, against=album.kinds[figure.guide or ""][:1])], tuple(reasons)
    parts = [_asked(ask, album, reasons) for ask in figure.asks]
    if figure.experiment == "typical":
        pictures: dict[int, TypicalPictures] = {}
        for ask in figure.asks:
            (label,) = (album.kinds[kind][0] for kind in ask.against)
            pictures[label], why = album.typical(ask.against[0])
            reasons.append(why)
        base = replace(base, typical=pictures)
    if not figure.joined:
        return [
            replace(base, images=(path,), targets=targets, against=against) for path, targets, against in parts
        ], tuple(dict.fromkeys(reasons))
    joined = replace(
        base,
        images=tuple(path for path, _, _ in parts),
        targets=tuple(index for _, targets, _ in parts for index in targets),
        against=tuple(index for _, _, against in parts for index in against),
    )
    return [joined], tuple(dict.fromkeys(reasons))


def _asked(ask: Ask, album: Album, reasons: list[str]) -> tuple[Path, tuple[int, ...], tuple[int, ...]]:
    choice = album.showing(*ask.shows)
    reasons.append(choice.reason)
    targets, against = (
        tuple(choice.classes.get(kind, album.kinds[kind][0]) for kind in kinds) for kinds in (ask.targets, ask.against)
    )
    return choice.path, targets, against


def draw_figure(
    figure: PaperFigure, album: Album, base: Question, weights: Sequence[str], *, force: bool = False
) -> Drawn:
    """Draws a figure of the paper into `base.output`, unless it is there already for the same question.

    `base` holds the models, the folder and the options; `weights` are the digests of the models' weights.

    Raises:
        VitrailError: for a photograph that is missing, and whatever the experiment raises.
    """
    experiment = find_experiment(figure.label)
    if "models" not in experiment.takes:
        base, weights = replace(base, others=()), weights[:1]
    asked, reasons = questions(figure, album, base)
    about = {
        "figure": figure.number,
        "experiment": experiment.name,
        "models": [model.name for model in base.models],
        "photographs": list(reasons),
        "question": [_identity(one, weights) for one in asked],
    }
    path = base.output / f"{figure.label}.json"
    results = None if force else _there(path, about["question"])
    again = results is not None
    if results is None:
        results = [result for one in asked for result in experiment.function(one)]
    drawn = Drawn(figure, tuple(results), reasons, again)
    document = {
        **about,
        "shows": figure.shows,
        "claim": figure.claim,
        "verdict": vars(drawn.verdict),
        "results": results,
    }
    with atomic_write(path) as file:
        file.write(json.dumps(document, indent=2, default=str).encode())
    return drawn


def _there(path: Path, asked: Any) -> list[dict[str, Any]] | None:
    """Returns the results of a figure that was drawn for the same question and whose pictures are still there."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        same = document["question"] == json.loads(json.dumps(asked, default=str))
        results = document["results"]
        files = {Path(one[key]) for one in results for key in ("file", "sheet", "rewritten") if key in one}
        return results if same and all(path.is_file() for path in files) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_of(models: Sequence[VisionModel]) -> list[str]:
    """Returns the digest of each model's weights.

    Raises:
        ModelError: for weights that have no fixed bytes.
    """
    return [digest_of(model.module) for model in models]


def _identity(question: Question, weights: Sequence[str]) -> dict[str, Any]:
    """Returns all that decides a figure, as plain JSON values; a file counts by what it holds."""
    typical = question.typical if isinstance(question.typical, Mapping) else {}
    return {
        "vitrail": version("vitrail"),
        "models": [_about(*pair) for pair in zip(question.models, weights, strict=True)],
        "images": [_digest(path) for path in question.images],
        "labels": [] if question.targets else [path.parts[-2:] for path in question.images],  # are read off names
        "classes": [question.targets, question.against],
        "guide": None if question.guide is None else _digest(Path(question.guide)),
        "typical": {str(index): [_digest(one.path) for one in found.pictures] for index, found in typical.items()},
        "options": [question.methods, question.options, question.limit, question.steps, question.lr, question.until],
        "format": question.format,
    }


def _about(model: VisionModel, weights: str) -> dict[str, Any]:
    return {
        "name": model.name,
        "weights": weights,
        "preprocess": None if model.preprocess is None else model.preprocess.record(),
        "class_names": None if model.class_names is None else list(model.class_names),
        "output": model.output,
        "dtype": str(model.dtype),
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_page(drawn: Sequence[Drawn], models: Sequence[VisionModel], places: str, folder: Path) -> Path:
    """Writes `index.html`: for each figure what it shows, its claim, the figure and the verdict. Returns its path.

    The page holds its pictures, each of which leads to the file of full size next to it.

    Raises:
        OutputFileError: when the file cannot be written.
    """
    by_number = {one.figure.number: one for one in drawn}
    page = web_page(
        "vitrail.experiments",
        figures=[by_number[number] for number in sorted(by_number)],
        missing=[number for number in FIGURES if number not in by_number],
        pictures={path: _preview(path) for one in drawn for path in one.files},
        models=[model.name for model in models],
        places=places,
        diagrams=DIAGRAMS,
        first=FIRST,
    )
    path = folder / "index.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _preview(path: Path) -> str:
    """Returns a figure as an address for the page: small enough for it, or the file itself where it is a drawing."""
    if path.suffix == ".svg":
        return path.name
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "jpeg", quality=QUALITY, subsampling=0)
    return picture_address(buffer.getvalue(), "jpeg")
