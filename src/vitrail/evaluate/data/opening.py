"""One door to every kind of data: `open_data`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.errors import DataError
from vitrail.evaluate.data.annotations import add_boxes, add_labels, add_masks
from vitrail.evaluate.data.classes import Classes
from vitrail.evaluate.data.dataset import Dataset
from vitrail.evaluate.data.folders import find_folder, listed
from vitrail.evaluate.data.list_file import find_list
from vitrail.evaluate.data.opened import Opened
from vitrail.evaluate.data.pictures import Entry, Pictures, Source
from vitrail.evaluate.data.selection import select
from vitrail.evaluate.data.table import SUFFIXES
from vitrail.models.vision_model import VisionModel

__all__ = ["open_data"]


def open_data(
    spec: str | Path | Dataset,
    model: VisionModel,
    *,
    boxes: str | Path | None = None,
    labels: str | Path | None = None,
    masks: str | Path | None = None,
    category: int | Sequence[int] | None = None,
    limit: int | None = None,
    seed: int = 0,
    one_class: str | int | None = None,
) -> Dataset:
    if isinstance(spec, Dataset) and not isinstance(spec, str | Path):
        return spec
    classes = Classes.of(model)
    notes: list[str] = []
    entries = _entries(Path(spec), classes, notes)
    if labels is not None:
        entries = add_labels(entries, Path(labels), classes, notes)
    if boxes is not None:
        entries = add_boxes(entries, Path(boxes), classes, notes)
    if masks is not None:
        entries = add_masks(entries, Path(masks), notes)
    foreground = (category,) if isinstance(category, int) else None if category is None else tuple(category)
    inner: Source = Pictures(_of_the_model(entries, classes, str(spec), notes), notes, foreground)
    places = list(range(len(inner)))
    if one_class is not None:
        wanted = classes.find(str(one_class))
        places = [place for place in places if inner.label(place) == wanted and wanted is not None]
        if not places:
            raise DataError(f"none of the {len(inner)} pictures of {spec} is of the class {one_class}")
    chosen = select([inner.label(place) for place in places], limit, seed)
    arguments: dict[str, Any] = {"spec": str(spec), "seed": seed}
    given = {"boxes": boxes, "labels": labels, "masks": masks, "limit": limit, "one_class": one_class}
    arguments |= {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    arguments["category"] = None if foreground is None else list(foreground)
    return Opened(inner, [places[place] for place in chosen], arguments)


def _entries(path: Path, classes: Classes, notes: list[str]) -> list[Entry]:
    if path.is_dir() or not path.exists():
        if (path / "images").is_dir() and (path / "masks").is_dir():
            entries, told = find_folder(path / "images", classes)
            entries = add_masks(entries, path / "masks", notes)
        else:
            entries, told = find_folder(path, classes)
    elif path.suffix.lower() in SUFFIXES:
        entries, told = find_list(path, classes)
    else:
        raise DataError(f"{path} is neither a folder nor a list (a file ending in {', '.join(SUFFIXES)})")
    notes += told
    return entries


def _of_the_model(entries: Sequence[Entry], classes: Classes, spec: str, notes: list[str]) -> list[Entry]:
    """The pictures that are of one of the model's classes, or of which no class is told."""
    kept = [entry for entry in entries if entry.label is not None or entry.word is None]
    outside = Counter(entry.word for entry in entries if entry.label is None and entry.word is not None)
    several = [word for word in outside if len(classes.all(word)) > 1]
    words = [f"{word} ({count})" for word, count in sorted(outside.items())]
    remedy = "; a class is named by its index, its whole name, or a WordNet id"
    if several:
        remedy += f"; {listed(several)} is the name of several classes: give the index or the WordNet id"
    if not kept:
        raise DataError(f"{spec}: none of {len(entries)} pictures is of a class of the model: {listed(words)}{remedy}")
    if outside:
        notes.append(
            f"{outside.total()} of {len(entries)} pictures are left out, for their classes are not the model's: "
            f"{listed(words)}{remedy}"
        )
    unknown = sum(entry.label is None for entry in kept)
    if unknown:
        notes.append(f"the class of {unknown} of {len(kept)} pictures is not known")
    return kept
