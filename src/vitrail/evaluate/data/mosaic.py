"""Mosaics: pictures of different classes side by side, so that it is known which part of the image is of which class.

(Arias-Duart et al. 2022, "Focus! Rating XAI methods and finding biases", with two pictures of the target class; here
every picture is of another class, so that each has a region of its own.)
"""

from collections import defaultdict
from itertools import product
from typing import Any

import numpy as np

from vitrail.errors import DataError
from vitrail.evaluate.data.composed import canvas_of
from vitrail.evaluate.data.dataset import Sample
from vitrail.evaluate.data.pictures import Content, Source
from vitrail.evaluate.data.wording import counted
from vitrail.guidance.stitching import Box
from vitrail.models.vision_model import VisionModel

__all__ = ["GRIDS", "Mosaics"]

# What is asked for, as columns x rows like the size of a picture, and the rows and columns of it.
GRIDS = {"2": (2, 2), "2x2": (2, 2), "2x1": (1, 2), "1x2": (2, 1)}


class Mosaics:
    """One mosaic for each labelled picture of another data set: it, the first, and others of as many other classes.

    The others and all places are drawn from `seed` and the picture's place alone. In a mosaic of four each picture is
    cropped as the model crops; in one of two it is squashed, for half of the input is too narrow to crop to.

    Raises:
        DataError: for an unknown grid, fewer classes than cells, or a model without preprocessing.
        LayoutError: when the model's patches are too few.
    """

    annotations = frozenset({"label", "regions"})

    def __init__(self, inner: Source, model: VisionModel, grid: str = "2", seed: int = 0) -> None:
        if grid not in GRIDS:
            raise DataError(f"grid={grid} of a mosaic is not known; choose one of {', '.join(GRIDS)}")
        self.canvas = canvas_of(model, "mosaics")
        self.inner, self.seed, self.cells = inner, seed, _cells(GRIDS[grid], self.canvas.grid)
        by_class: dict[int, list[int]] = defaultdict(list)
        for place in range(len(inner)):
            if (label := inner.label(place)) is not None:
                by_class[label].append(place)
        self.by_class = dict(sorted(by_class.items()))
        self.classes = np.array(list(self.by_class))
        self.places = sorted(place for places in self.by_class.values() for place in places)
        if len(self.by_class) < len(self.cells):
            raise DataError(
                f"a mosaic of {len(self.cells)} pictures needs as many classes, and the data hold {len(self.by_class)}"
            )
        self.notes = list(inner.notes)
        self.contents: dict[int, str] = {}
        if left := len(inner) - len(self.places):
            self.notes.append(f"in no mosaic: {counted(left, 'picture')} of no known class")

    def __len__(self) -> int:
        return len(self.places)

    def members(self, index: int) -> tuple[list[int], list[Box]]:
        """The places of a mosaic's pictures in the data beneath, the first one first, and the cells they lie in."""
        rng = np.random.default_rng((self.seed, index))
        own = self.inner.label(self.places[index])
        others = rng.choice(self.classes[self.classes != own], len(self.cells) - 1, replace=False)
        among = [self.by_class[int(label)] for label in others]
        chosen = [places[int(rng.integers(len(places)))] for places in among]
        return [self.places[index], *chosen], [self.cells[cell] for cell in rng.permutation(len(self.cells))]

    def source(self, index: int) -> str:
        return " + ".join(self.inner.source(place) for place in self.members(index)[0])

    def label(self, index: int) -> int | None:
        return self.inner.label(self.places[index])

    def raw_label(self, index: int) -> str | None:
        return None

    def content(self, index: int) -> Content:
        places, cells = self.members(index)
        for place in places:  # each lies in several mosaics, and is read once
            if place not in self.contents:
                self.contents[place] = self.inner.content(place)[0]
        return " ".join(self.contents[place] for place in places), str(cells)

    def provenance(self) -> dict[str, Any]:
        return self.inner.provenance()

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
