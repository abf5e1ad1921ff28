"""Several pictures put together at the size of the model's input.

Mosaics: pictures of different classes side by side, so that it is known which part of the image is of which class.

(Arias-Duart et al. 2022, "Focus! Rating XAI methods and finding biases", with two pictures of the target class; here
every picture is of another class, so that each has a region of its own.)

Photographs stitched to a guide: both squashed whole into half of the model's input, the photograph on the left.

The pixels are those of the perturbation experiment on stitched pictures (Cui, Fan, Chen), rounded to 8 bits where
neither picture lies.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
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
from vitrail.errors import DataError
from vitrail.guidance.stitching import plan_stitch
from vitrail.images import read_image
from vitrail.models.layout import layout_of
from vitrail.models.preprocess import Preprocess
from vitrail.models.vision_model import VisionModel
from vitrail.provenance import Box

__all__ = ["GRIDS", "Canvas", "Mosaics", "Stitched", "canvas_of"]


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


# What is asked for, as columns x rows like the size of a picture, and the rows and columns of it.
GRIDS = {"2": (2, 2), "2x2": (2, 2), "2x1": (1, 2), "1x2": (2, 1)}


class Mosaics(Selection):
    """One mosaic for each labelled picture of another data set: it, the first, and others of as many other classes.

    The others and all places are drawn from `seed` and the picture's place alone. In a mosaic of four each picture is
    cropped as the model crops; in one of two it is squashed, for half of the input is too narrow to crop to.

    Raises:
        DataError: for an unknown grid, fewer classes than cells, or a model without preprocessing.
        LayoutError: when the model's patches are too few.
    """

    def __init__(self, inner: Source, model: VisionModel, grid: str = "2", seed: int = 0) -> None:
        if grid not in GRIDS:
            raise DataError(f"grid={grid} of a mosaic is not known; choose one of {', '.join(GRIDS)}")
        self.canvas = canvas_of(model, "mosaics")
        self.seed, self.cells = seed, _cells(GRIDS[grid], self.canvas.grid)
        by_class: dict[int, list[int]] = defaultdict(list)
        for place in range(len(inner)):
            if (label := inner.label(place)) is not None:
                by_class[label].append(place)
        self.by_class = dict(sorted(by_class.items()))
        self.classes = np.array(list(self.by_class))
        places = sorted(place for places in self.by_class.values() for place in places)
        if len(self.by_class) < len(self.cells):
            raise DataError(
                f"a mosaic of {len(self.cells)} pictures needs as many classes, and the data hold {len(self.by_class)}"
            )
        left = len(inner) - len(places)
        super().__init__(inner, places, [f"in no mosaic: {counted(left, 'picture')} of no known class"] if left else [])
        self.annotations = frozenset({"label", "regions"})
        self.contents: dict[int, str] = {}

    def members(self, index: int) -> tuple[list[int], list[Box]]:
        """Returns the places of a mosaic's pictures in the data beneath, the first one first, and the cells
        they lie in.
        """
        rng = np.random.default_rng((self.seed, index))
        own = self.inner.label(self.places[index])
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
        regions = {
            label: self.canvas.region(cell)
            for place, cell in zip(places, cells, strict=True)
            if (label := self.inner.label(place)) is not None
        }
        picture = self.canvas.compose(pictures, cells, squash=len(cells) == 2)
        return Sample(picture=picture, label=self.label(index), regions=regions, fitted=True)


def _cells(split: tuple[int, int], grid: tuple[int, int]) -> list[Box]:
    """Equal cells of whole patches, from the corners inwards; patches in the middle may belong to none."""
    (rows, cols), (high, wide) = split, (grid[0] // split[0], grid[1] // split[1])
    if min(high, wide) < 1:
        raise DataError(f"a grid of {grid[0]}×{grid[1]} patches cannot be split into {rows}×{cols} cells")
    tops = [0] if rows == 1 else [0, grid[0] - high]
    lefts = [0] if cols == 1 else [0, grid[1] - wide]
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
