"""Several pictures put together at the size of the model's input.

Mosaics: pictures of different classes side by side, so that it is known which part of the image is of which class.

(Arias-Duart et al. 2022, "Focus! Rating XAI methods and finding biases", with two pictures of the target class; here
every picture is of another class, so that each has a region of its own. With a least confidence, the mosaics of Rao,
Böhle, Schiele 2022, "Towards Better Understanding Attribution Methods".)

Photographs stitched to a guide: both squashed whole into half of the model's input, the photograph on the left.

The pixels are those of the perturbation experiment on stitched pictures (Cui, Fan, Chen), rounded to 8 bits where
neither picture lies.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from vitrail.datasets.base import Content, Sample, Selection, Source
from vitrail.datasets.label_resolver import counted
from vitrail.errors import DataError, ImageError
from vitrail.guidance.stitching import plan_stitch
from vitrail.images import read_image
from vitrail.models.layout import layout_of
from vitrail.models.preprocess import Preprocess
from vitrail.models.vision_model import VisionModel
from vitrail.provenance import Box

__all__ = ["Canvas", "Mosaics", "Stitched", "canvas_of"]

PASS = 16  # pictures that the model is asked about together


@dataclass(frozen=True)
class Canvas:
    """The model's input as a grid of patches, on which pictures are laid; `patch` is (height, width) in pixels."""

    preprocess: Preprocess
    grid: tuple[int, int]
    patch: tuple[int, int]

    def compose(self, pictures: Sequence[Image.Image], boxes: Sequence[Box], *, squash: bool) -> Image.Image:
        """Returns one picture of the input's size: each in its box, whole and out of shape, or cropped as the model
        does it.

        What no box covers shows the model's mean colour.
        """
        mean = tuple(round(255 * value) for value in self.preprocess.mean) * (3 // self.preprocess.channels)
        whole = Image.new("RGB", (self.preprocess.size[1], self.preprocess.size[0]), mean)
        for picture, box in zip(pictures, boxes, strict=True):
            rows, cols = box.slices(self.patch)
            size = (rows.stop - rows.start, cols.stop - cols.start)
            cell = replace(self.preprocess.squashed(), size=size) if squash else self.preprocess.with_size(size)
            whole.paste(cell.view(picture), (cols.start, rows.start))
        return whole

    def region(self, box: Box) -> Bool[np.ndarray, "height width"]:
        """Returns the pixels of a box."""
        region = np.zeros(self.preprocess.size, dtype=bool)
        region[box.slices(self.patch)] = True
        return region


def canvas_of(model: VisionModel, what: str) -> Canvas:
    """Returns the canvas of a model's own input.

    Raises:
        DataError: for a model without preprocessing; `what` are the pictures that cannot be made for it.
        LayoutError: for a model whose tokens fit no grid.
    """
    if model.preprocess is None:
        raise DataError(f"{model.name} comes without preprocessing, so no {what} can be made for it")
    height, width = model.preprocess.size
    layout = layout_of(model, model.blank())
    return Canvas(model.preprocess, (layout.rows, layout.cols), (height // layout.rows, width // layout.cols))


class Mosaics(Selection):
    """One mosaic for each labelled picture of another data set: it, the first, and others of as many other classes.

    The others and all places are drawn from `seed` and the picture's place alone. `grid` is the number of rows and
    columns ("3"), or columns x rows like the size of a picture ("2x1"). In a square mosaic each picture is cropped as
    the model crops; in others it is squashed, for half of the input is too narrow to crop to.

    With `confidence` a picture takes part only if the model gives its class at least this probability when it sees the
    picture by itself, and then a picture without a label is of the class that the model predicts.

    Raises:
        DataError: for an unknown grid, a confidence outside 0 to 1, fewer classes than cells, or a model without
            preprocessing.
        LayoutError: when the model's patches are too few.
    """

    def __init__(
        self, inner: Source, model: VisionModel, grid: str = "2", seed: int = 0, confidence: float | None = None
    ) -> None:
        split = _split(grid)
        self.canvas = canvas_of(model, "mosaics")
        self.seed, self.cells, self.squash = seed, _cells(split, self.canvas.grid), split[0] != split[1]
        known = {place: label for place in range(len(inner)) if (label := inner.label(place)) is not None}
        named = known if confidence is None else _confident(inner, model, confidence)
        by_class: dict[int, list[int]] = defaultdict(list)
        for place, label in named.items():
            by_class[label].append(place)
        self.by_class, self.label_of = dict(sorted(by_class.items())), named
        self.classes = np.array(list(self.by_class))
        rule = "of no known class" if confidence is None else f"to whose class the model does not give {confidence:g}"
        if len(self.by_class) < len(self.cells):
            short = "the data hold" if confidence is None else f"with confidence={confidence:g} the data hold"
            raise DataError(
                f"a mosaic of {len(self.cells)} pictures needs as many classes, and {short} {len(self.by_class)}"
            )
        left = len(inner) - len(named)
        super().__init__(inner, sorted(named), [f"in no mosaic: {counted(left, 'picture')} {rule}"] if left else [])
        self.annotations = frozenset({"label", "regions"})
        self.contents: dict[int, str] = {}

    def label(self, index: int) -> int | None:
        return self.label_of[self.places[index]]

    def members(self, index: int) -> tuple[list[int], list[Box]]:
        """Returns the places of a mosaic's pictures in the data beneath, the first one first, and the cells
        they lie in.
        """
        rng = np.random.default_rng((self.seed, index))
        own = self.label(index)
        others = rng.choice(self.classes[self.classes != own], len(self.cells) - 1, replace=False)
        among = [self.by_class[int(label)] for label in others]
        chosen = [places[int(rng.integers(len(places)))] for places in among]
        return [self.places[index], *chosen], [self.cells[cell] for cell in rng.permutation(len(self.cells))]

    def source(self, index: int) -> str:
        return " + ".join(self.inner.source(place) for place in self.members(index)[0])

    def content(self, index: int) -> Content:
        places, cells = self.members(index)
        for place in places:  # each lies in several mosaics, and is read once
            if place not in self.contents:
                self.contents[place] = self.inner.content(place)[0]
        return " ".join(self.contents[place] for place in places), str(cells)

    def sample(self, index: int) -> Sample:
        places, cells = self.members(index)
        pictures = [self.inner.sample(place).picture for place in places]
        regions = {self.label_of[place]: self.canvas.region(cell) for place, cell in zip(places, cells, strict=True)}
        picture = self.canvas.compose(pictures, cells, squash=self.squash)
        return Sample(picture=picture, label=self.label(index), regions=regions, fitted=True)


def _split(grid: str) -> tuple[int, int]:
    """Returns the rows and columns of a mosaic."""
    found = re.fullmatch(r"([1-9])(?:x([1-9]))?", grid)
    split = (0, 0) if found is None else (int(found[2] or found[1]), int(found[1]))
    if split[0] * split[1] < 2:
        raise DataError(f"grid={grid} of a mosaic is not known; give 2, 3 and so on, or columns x rows, as in 2x1")
    return split


def _confident(inner: Source, model: VisionModel, confidence: float) -> Mapping[int, int]:
    """Returns the class of each picture to which the model gives at least `confidence`, and the label if it has one."""
    assert model.preprocess is not None
    if not 0 < confidence <= 1:
        raise DataError(f"confidence={confidence:g} of a mosaic's pictures must lie above 0 and be at most 1")
    found: dict[int, int] = {}
    for start in range(0, len(inner), PASS):
        read = {}
        for place in range(start, min(start + PASS, len(inner))):
            with suppress(ImageError):  # which is in no mosaic
                read[place] = model.preprocess(inner.sample(place).picture)
        if not read:
            continue
        images = torch.stack(list(read.values())).to(model.device, model.dtype)
        with torch.no_grad():
            best = model.kind_for(images).probabilities(model.logits(images).double()).max(dim=1)
        seen = zip(read, best.values.tolist(), best.indices.tolist(), strict=True)
        found |= {
            place: label for place, sure, label in seen if sure >= confidence and inner.label(place) in (None, label)
        }
    return found


def _cells(split: tuple[int, int], grid: tuple[int, int]) -> list[Box]:
    """Equal cells of whole patches, as far apart as fits; patches between them may belong to none."""
    (rows, cols), (high, wide) = split, (grid[0] // split[0], grid[1] // split[1])
    if min(high, wide) < 1:
        raise DataError(f"a grid of {grid[0]}×{grid[1]} patches cannot be split into {rows}×{cols} cells")
    tops = [(grid[0] - high) * row // max(rows - 1, 1) for row in range(rows)]
    lefts = [(grid[1] - wide) * col // max(cols - 1, 1) for col in range(cols)]
    return [Box(top, left, high, wide) for top, left in product(tops, lefts)]


class Stitched(Selection):
    """Each labelled picture of another data set stitched to the same guide; one region for either class.

    `guide_class` is the class that the guide shows, by default the one that the model sees in it. Pictures of that
    class, and those whose class is not known, are left out.

    Raises:
        ImageError: for a guide that cannot be read.
        DataError: when no picture of another class is left, or the model has no preprocessing.
    """

    def __init__(self, inner: Source, model: VisionModel, guide: Path, guide_class: int | None = None) -> None:
        self.canvas = canvas_of(model, "stitched pictures")
        self.plan = plan_stitch("side", "left", "squash", grid=self.canvas.grid, patch=self.canvas.patch)
        self.guide, self.picture = guide, read_image(guide)
        if guide_class is None:
            with torch.no_grad():
                guide_class = int(model.logits(self.canvas.preprocess(self.picture)[None]).argmax())
        self.guide_class = guide_class
        places = [
            place for place in range(len(inner)) if inner.label(place) is not None and inner.label(place) != guide_class
        ]
        named = f"{model.class_name(guide_class)} ({guide_class})"
        if not places:
            raise DataError(f"none of the {len(inner)} pictures is of a known class other than the guide's, {named}")
        notes = [f"the guide {guide.name} shows {named}"]
        if left := len(inner) - len(places):
            notes.append(f"left out: {counted(left, 'picture')} of the guide's class, or of none that is known")
        super().__init__(inner, places, notes)
        self.annotations = frozenset({"label", "regions"})

    def content(self, index: int) -> Content:
        return super().content(index)[0], ""

    def provenance(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.guide.read_bytes()).hexdigest()
        return {**super().provenance(), "guide_class": self.guide_class, "guide_sha256": digest}

    def sample(self, index: int) -> Sample:
        photograph = super().sample(index)
        assert photograph.label is not None
        own, far = self.plan.original, self.plan.guide
        return Sample(
            picture=self.canvas.compose([photograph.picture, self.picture], [own, far], squash=True),
            label=photograph.label,
            regions={photograph.label: self.canvas.region(own), self.guide_class: self.canvas.region(far)},
            fitted=True,
        )
