"""Photographs with boxes, and how well a map finds what the boxes hold and what the model's prediction depends on.

Each photograph is squashed to the model's input and its label's class explained. Localisation is measured on
photographs whose boxes cover less than half: pointing (the highest score lies in a box) and energy (the share of all
positive score that lies in a box), on the map upsampled bilinearly. Perturbation: patches of 16 × 16 pixels set to
black before normalisation at 0 %, 10 % … 90 %, the highest scores first (positive) or the lowest (negative); score
top-1 = label, area by trapezoid with 0 at 100 %.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vitrail
from vitrail.metrics.faithfulness.perturbation import SHARES as PERTURBED
from vitrail.metrics.faithfulness.perturbation import area as area_under
from vitrail.metrics.faithfulness.perturbation import perturb

SHARES = [0.0, *PERTURBED]
SIZE, PATCH = 224, 16
MEASURES = ("pointing", "energy", "positive", "negative")


@dataclass
class Photograph:
    """One labelled photograph with its boxes as a mask."""

    name: str
    pixels: Tensor
    label: int
    boxes: Tensor
    small: bool

    @property
    def normalised(self) -> Tensor:
        return (self.pixels - 0.5) / 0.5


def read_photographs(images: Path, boxes: Path, count: int, skip: int) -> list[Photograph]:
    """The files of the box list in its order, squashed, with all boxes of a file as one mask."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with boxes.open(newline="") as lines:
        for row in csv.DictReader(lines):
            rows[row["file"]].append(row)
    found = []
    for name in list(rows)[skip : skip + count]:
        picture = Image.open(images / name).convert("RGB")
        mask = np.zeros((picture.height, picture.width), np.uint8)
        for row in rows[name]:
            x_min, y_min, x_max, y_max = (int(float(row[key])) for key in ("x_min", "y_min", "x_max", "y_max"))
            mask[y_min:y_max, x_min:x_max] = 1
        resized = Image.fromarray(mask).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        inside = torch.from_numpy(np.array(resized)).bool()
        label = int(rows[name][0]["class_index"])
        found.append(Photograph(name, squashed(picture), label, inside, bool(mask.mean() < 0.5)))
    return found


def squashed(picture: Image.Image) -> Tensor:
    """A picture as the protocol takes it: pixels from 0 to 1, (3, 224, 224)."""
    small = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def localisation(photograph: Photograph, large: Tensor) -> dict[str, float]:
    """Pointing and energy of a map of the photograph's own size."""
    positive = large.clamp(min=0)
    return {
        "pointing": float(photograph.boxes.flatten()[large.argmax()]),
        "energy": float((positive * photograph.boxes).sum() / positive.sum().clamp(min=1e-12)),
    }


def perturbed_hits(model: vitrail.VisionModel, photograph: Photograph, scores: Tensor, descending: bool) -> np.ndarray:
    """Whether the label still wins with each share of patches black, the highest (or lowest) scores first."""
    batch = [(perturb(photograph.pixels, scores, share, highest=descending) - 0.5) / 0.5 for share in SHARES]
    with torch.no_grad():
        predicted = model.logits(torch.stack(batch)).argmax(dim=1)
    return (predicted == photograph.label).numpy().astype(float)


def area(hits: np.ndarray) -> float:
    """The area under accuracy over share, 0 at 100 %, by the trapezoid rule."""
    return float(area_under(torch.from_numpy(np.asarray(hits, dtype=np.float64)), "bi"))


def measures(
    model: vitrail.VisionModel, photograph: Photograph, scores: Tensor, *, perturb: bool = True
) -> dict[str, float]:
    """All figures of one map, (rows, columns) or the photograph's own 14 × 14 patches for the perturbation."""
    large = _upsampled(scores, (SIZE, SIZE))
    found = localisation(photograph, large) if photograph.small else {}
    if perturb:
        side = SIZE // PATCH
        # A squashed half has patches that cover several of the photograph's own: these are ranked together.
        own = scores if scores.shape == (side, side) else _repeated(scores, side)
        found["positive"] = area(perturbed_hits(model, photograph, own, descending=True))
        found["negative"] = area(perturbed_hits(model, photograph, own, descending=False))
    return found


def interval(values: np.ndarray, generator: np.random.Generator) -> str:
    """Mean and 95 % bootstrap interval over photographs."""
    means = values[generator.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def _upsampled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    wide = torch.nn.functional.interpolate(scores[None, None], size=size, mode="bilinear", align_corners=False)
    return wide[0, 0]


def _repeated(scores: Tensor, side: int) -> Tensor:
    rows, cols = scores.shape
    return scores.repeat_interleave(side // rows, 0).repeat_interleave(side // cols, 1)
