"""Photographs beside a guide picture: both squashed whole into half of the model's input, the photograph on the left.

The pixels are those of the perturbation experiment on stitched pictures (Cui, Fan, Chen), rounded to 8 bits where
neither picture lies.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from vitrail.errors import DataError
from vitrail.evaluate.data.composed import canvas_of
from vitrail.evaluate.data.dataset import Sample
from vitrail.evaluate.data.pictures import Content, Source
from vitrail.evaluate.data.wording import counted
from vitrail.guidance.stitching import plan_stitch
from vitrail.images import read_image
from vitrail.models.vision_model import VisionModel

__all__ = ["Stitched"]


class Stitched:
    """Each labelled picture of another data set beside the same guide; one region for either class.

    `guide_class` is the class that the guide shows, by default the one that the model sees in it. Pictures of that
    class, and those whose class is not known, are left out.

    Raises:
        ImageError: for a guide that cannot be read.
        DataError: when no picture of another class is left, or the model has no preprocessing.
    """

    annotations = frozenset({"label", "regions"})

    def __init__(self, inner: Source, model: VisionModel, guide: Path, guide_class: int | None = None) -> None:
        self.canvas = canvas_of(model, "stitched pictures")
        self.plan = plan_stitch("side", "left", "squash", grid=self.canvas.grid, patch=self.canvas.patch)
        self.inner, self.guide, self.picture = inner, guide, read_image(guide)
        if guide_class is None:
            with torch.no_grad():
                guide_class = int(model.logits(self.canvas.preprocess(self.picture)[None]).argmax())
        self.guide_class = guide_class
        self.places = [
            place for place in range(len(inner)) if inner.label(place) is not None and inner.label(place) != guide_class
        ]
        named = f"{model.class_name(guide_class)} ({guide_class})"
        if not self.places:
            raise DataError(f"none of the {len(inner)} pictures is of a known class other than the guide's, {named}")
        self.notes = [*inner.notes, f"the guide {guide.name} shows {named}"]
        if left := len(inner) - len(self.places):
            self.notes.append(f"left out: {counted(left, 'picture')} of the guide's class, or of none that is known")

    def __len__(self) -> int:
        return len(self.places)

    def source(self, index: int) -> str:
        return self.inner.source(self.places[index])

    def label(self, index: int) -> int | None:
        return self.inner.label(self.places[index])

    def raw_label(self, index: int) -> str | None:
        return None

    def content(self, index: int) -> Content:
        return self.inner.content(self.places[index])[0], ""

    def provenance(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.guide.read_bytes()).hexdigest()
        return {**self.inner.provenance(), "guide_class": self.guide_class, "guide_sha256": digest}

    def sample(self, index: int) -> Sample:
        photograph = self.inner.sample(self.places[index])
        assert photograph.label is not None
        own, far = self.plan.original, self.plan.guide
        return Sample(
            picture=self.canvas.compose([photograph.picture, self.picture], [own, far], squash=True),
            label=photograph.label,
            regions={photograph.label: self.canvas.region(own), self.guide_class: self.canvas.region(far)},
            fitted=True,
        )
