"""Loads any supported data set: `open_data`.

Some of a data set's pictures, evenly over the classes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from vitrail.datasets.annotations import SUFFIXES, add_boxes, add_labels, add_masks, find_list
from vitrail.datasets.base import Dataset, Given, Opened, Selection, Source
from vitrail.datasets.image_folders import Pictures, find_folder
from vitrail.datasets.label_resolver import LabelResolver, counted, listed
from vitrail.errors import DataError
from vitrail.models.vision_model import VisionModel

__all__ = ["evenly", "open_data", "select"]


@dataclass(frozen=True)
class _Arguments:
    """What a manifest must hold to open the data again; `limit` and `one_class` choose among them afterwards."""

    spec: str
    boxes: str | None
    labels: str | None
    masks: str | None
    category: tuple[int, ...] | None
    guide: str | None
    limit: int | None
    seed: int
    one_class: str | None

    def refuse(self, *names: str) -> None:
        """Refuse arguments that this kind of data has no use for."""
        for name in names:
            if getattr(self, name) is not None:
                raise DataError(f"{name}={getattr(self, name)} is of no use for {self.spec}; leave it out")


def open_data(
    spec: str | Path | Dataset,
    model: VisionModel,
    *,
    boxes: str | Path | None = None,
    labels: str | Path | None = None,
    masks: str | Path | None = None,
    category: int | Sequence[int] | None = None,
    guide: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    one_class: str | int | None = None,
) -> Opened:
    """Pictures in a fixed order, with what is known of each; `notes` says what was left out and why.

    `spec` is one of

        FOLDER                          a folder for each class, or pictures whose names tell the class, or do not;
                                        with the two folders images/ and masks/ in it, pictures with masks
        LIST                            a table, .csv, .tsv or .parquet: file, class_index (or wnid, label, class_name),
                                        x_min, y_min, x_max, y_max (a row for each box), mask
        gtsegs_ijcv.mat                 ImageNet-Segmentation
        hf:NAME[:SPLIT]                 a Hugging Face data set, or a folder or file that its library reads
        mosaic:SPEC[?grid=2|3|2x1]      pictures of different classes of any of these, side by side; with
                                        &confidence=0.99 those that the model classifies with that probability
        stitched:SPEC                   each image stitched to the `guide`
        bestiary[:KIND[:COUNT]]         scenes of the built-in world: single, pair or chimera

    or a data set of your own. LabelResolver are called by index, by whole name, or by WordNet id.

    Args:
        model: whose classes and input the data are for.
        boxes: a table as above, one with the column PredictionString, or a folder of Pascal's XML files.
        labels: a table as above; the pictures that it does not name are left out.
        masks: a folder of PNG files with the pictures' stems.
        category: the value, or values, of a mask that count as the object; default all but 0.
        guide: the picture that goes into the right half of `stitched:`.
        limit: the largest number of pictures, drawn evenly over the classes.
        seed: of that draw, of the mosaics, and of the bestiary's scenes.
        one_class: only the pictures of this class.

    Raises:
        DataError: for data that are missing, cannot be read, are empty or of other classes than the model's, for an
            annotation file that names none of them, or for an argument that this kind has no use for.

    Example:
        >>> import vitrail
        >>> data = open_data("bestiary:pair:10", vitrail.load("bestiary"), limit=4)
        >>> len(data), sorted(data.annotations), len(data.sample(0).regions)
        (4, ['boxes', 'label', 'mask', 'regions'], 2)
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit} leaves no picture; give at least 1")
    own = None if isinstance(spec, str | Path) else spec
    request = _Arguments(
        spec=str(spec) if own is None else type(spec).__name__,
        boxes=None if boxes is None else str(boxes),
        labels=None if labels is None else str(labels),
        masks=None if masks is None else str(masks),
        category=(category,) if isinstance(category, int) else None if category is None else tuple(category),
        guide=None if guide is None else str(guide),
        limit=limit,
        seed=seed,
        one_class=None if one_class is None else str(one_class),
    )
    if own is not None:
        request.refuse("boxes", "labels", "masks", "category", "guide")
    classes = LabelResolver.of(model)
    inner = _find(request.spec, request, model, classes) if own is None else Given(own)
    places = list(range(len(inner)))
    if request.one_class is not None:
        wanted = classes.find(request.one_class)
        if wanted is None:
            raise DataError(f"one_class={one_class} is no class of the model; give an index, a whole name or a wnid")
        places = [place for place in places if inner.label(place) == wanted]
        if not places:
            raise DataError(f"none of the {len(inner)} pictures of {request.spec} is of the class {one_class}")
    if limit is not None and limit < len(places):
        chosen = select([inner.label(place) for place in places], limit, seed)
        places = [places[place] for place in chosen]
    arguments = asdict(request)
    arguments["category"] = None if request.category is None else list(request.category)
    return Opened(inner, places, arguments)


def _find(spec: str, request: _Arguments, model: VisionModel, classes: LabelResolver) -> Source:
    """All pictures of a kind of data that are of the model's classes."""
    kind, _, rest = spec.partition(":")
    if kind == "mosaic":
        from vitrail.datasets.composed import Mosaics

        request.refuse("guide")
        beneath, options = _options(rest)
        return Mosaics(_find(beneath, request, model, classes), model, seed=request.seed, **options)
    if kind == "stitched":
        from vitrail.datasets.composed import Stitched

        if request.guide is None:
            raise DataError(f"{spec} needs a picture for the right half: give guide=, a file")
        beneath = _find(rest, replace(request, guide=None), model, classes)
        return Stitched(beneath, model, Path(request.guide))
    request.refuse("guide")
    if kind == "bestiary":
        request.refuse("boxes", "labels", "masks", "category")
        return _creatures(spec, request, model, classes)
    return _of_the_model(_plain(spec, request, classes), classes, spec)


def _plain(spec: str, request: _Arguments, classes: LabelResolver) -> Source:
    if spec.startswith("hf:"):
        from vitrail.datasets.hub import HubData, parse_name

        request.refuse("boxes", "labels", "masks")
        return HubData(*parse_name(spec.removeprefix("hf:")), classes, request.category)
    path = Path(spec)
    if path.suffix.lower() == ".mat":
        from vitrail.datasets.mat_file import MatFile

        request.refuse("boxes", "labels", "masks")
        return MatFile(path, classes, request.category)
    return _files(path, request, classes)


def _files(path: Path, request: _Arguments, classes: LabelResolver) -> Pictures:
    """Folders and lists, with what stands in files of its own."""
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is neither a folder nor a list ({', '.join(SUFFIXES)}) nor a .mat file")
    notes: list[str] = []
    masks = None if request.masks is None else Path(request.masks)
    if path.is_file():
        entries, told = find_list(path, classes)
    elif (path / "images").is_dir() and (path / "masks").is_dir():
        entries, told = find_folder(path / "images", classes)
        masks = masks or path / "masks"
    else:
        entries, told = find_folder(path, classes)
    if request.labels is not None:
        entries = add_labels(entries, Path(request.labels), classes, notes)
    if request.boxes is not None:
        entries = add_boxes(entries, Path(request.boxes), classes, notes)
    if masks is not None:
        entries = add_masks(entries, masks, notes)
    elif request.category is not None and not any(entry.mask for entry in entries):
        raise DataError(f"category={request.category} is a value of masks, and {path} comes without: give masks=")
    return Pictures(entries, [*told, *notes], request.category)


def _creatures(spec: str, request: _Arguments, model: VisionModel, classes: LabelResolver) -> Source:
    # Not before: the libraries that draw take their time.
    from vitrail.datasets.bestiary import COUNT, SIZE, Creatures

    kind, _, count = spec.partition(":")[2].partition(":")
    if count and not count.isdecimal():
        raise DataError(f"{spec}: the count is a whole number, not {count!r}; say bestiary:{kind}:100")
    size = SIZE if model.preprocess is None else max(model.preprocess.size)
    return Creatures(classes, kind or "single", int(count or COUNT), size, request.seed)


def _options(rest: str) -> tuple[str, dict[str, Any]]:
    """Returns what lies beneath a mosaic, and its options: mosaic:SPEC?grid=3&confidence=0.99."""
    found = re.search(r"\?((?:grid|confidence)=[^?]*)$", rest)
    if found is None:
        return rest, {}
    options: dict[str, Any] = dict(parse_qsl(found[1], keep_blank_values=True))
    if unknown := set(options) - {"grid", "confidence"}:
        raise DataError(f"a mosaic has no option {', '.join(sorted(unknown))}; it has grid and confidence")
    if "confidence" in options:
        try:
            options["confidence"] = float(options["confidence"])
        except ValueError:
            raise DataError(
                f"the confidence of a mosaic is a number, as 0.99 is, and not {options['confidence']!r}"
            ) from None
    return rest[: found.start()], options


def _of_the_model(source: Source, classes: LabelResolver, spec: str) -> Source:
    """The pictures that are of one of the model's classes, or of which no class is told."""
    labels = [source.label(index) for index in range(len(source))]
    words = [source.raw_label(index) for index in range(len(source))]
    kept = [index for index in range(len(source)) if labels[index] is not None or words[index] is None]
    outside = Counter(word for label, word in zip(labels, words, strict=True) if label is None and word is not None)
    told = [f"{word} ({count})" for word, count in sorted(outside.items())]
    several = sorted(word for word in outside if len(classes.all(word)) > 1)
    remedy = "a class is called by its index, its whole name, or its WordNet id"
    if several:
        remedy += f"; several classes are called {listed(several)}: give the index or the WordNet id"
    if not len(source):
        raise DataError(f"{spec} holds no picture")
    if not kept:
        raise DataError(
            f"{spec}: none of the {len(labels)} pictures is of a class of the model's: {listed(told)}; {remedy}"
        )
    notes = []
    if outside:
        notes.append(
            f"left out: {outside.total()} of {counted(len(labels), 'picture')}, of classes that are not the model's: "
            f"{listed(told)}; {remedy}"
        )
    if unknown := sum(labels[index] is None for index in kept):
        notes.append(f"of no known class: {unknown} of {counted(len(kept), 'picture')}")
    return Selection(source, kept, notes)


def evenly(labels: Sequence[int | None]) -> list[int]:
    """Places in an order that takes one of each class, then a second of each, and so on.

    Example:
        >>> evenly([5, 5, 7, 5, 7])
        [0, 2, 1, 4, 3]
    """
    seen: dict[int | None, int] = defaultdict(int)
    turns = []
    for place, label in enumerate(labels):
        turns.append((seen[label], place))
        seen[label] += 1
    return [place for _, place in sorted(turns)]


def select(labels: Sequence[int | None], limit: int | None, seed: int) -> list[int]:
    """Returns at most `limit` places, drawn evenly over the classes, in their own order.

    What a smaller limit takes a larger one takes too, with the same seed.

    Example:
        >>> places = select([5, 5, 5, 7, 7, 9], 3, seed=0)
        >>> len({[5, 5, 5, 7, 7, 9][place] for place in places})
        3
    """
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    mixed = np.random.default_rng(seed).permutation(len(labels)).tolist()
    turns = evenly([labels[place] for place in mixed])
    return sorted(mixed[turn] for turn in turns[:limit])
