"""What the gradient mode decides: pointing, energy and perturbation for gae and complete under full, leaf and libra.

Each photograph is squashed to 224×224 and its label's class explained; localisation on photographs whose boxes cover
less than half; 16×16 patches set to black before normalisation at 0 %, 10 % … 90 %, score top-1 = label, area by
trapezoid with 0 at 100 %. Figures come with 95 % bootstrap intervals.

    python benchmarks/gradient_modes.py --checkpoint w.safetensors --images imagenet-val --boxes imagenet-val/boxes.csv
"""

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from environment import describe_machine
from PIL import Image
from torch import Tensor

import vitrail

SHARES = [step / 10 for step in range(10)]
SIZE, PATCH = 224, 16


@dataclass
class Photograph:
    """One labelled photograph with its boxes as a mask."""

    pixels: Tensor
    label: int
    boxes: Tensor
    small: bool


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
        squashed = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float() / 255
        label = int(rows[name][0]["class_index"])
        found.append(Photograph(pixels, label, torch.from_numpy(np.array(resized)).bool(), bool(mask.mean() < 0.5)))
    return found


def perturbed_hits(model: vitrail.VisionModel, photograph: Photograph, scores: Tensor, descending: bool) -> np.ndarray:
    """Whether the label still wins with each share of patches black, the highest (or lowest) scores first."""
    side = SIZE // PATCH
    order = scores.flatten().argsort(descending=descending, stable=True)
    batch = []
    for share in SHARES:
        keep = torch.ones(side * side)
        keep[order[: int(side * side * share)]] = 0
        mask = keep.reshape(1, side, side).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        batch.append((photograph.pixels * mask - 0.5) / 0.5)
    with torch.no_grad():
        predicted = model.logits(torch.stack(batch)).argmax(dim=1)
    return (predicted == photograph.label).numpy().astype(float)


def area(hits: np.ndarray) -> float:
    """The area under accuracy over share, 0 at 100 %, by the trapezoid rule."""
    heights = np.append(hits, 0.0)
    return float((heights[1:] + heights[:-1]).sum() / 2 * 0.1)


def interval(values: np.ndarray, generator: np.random.Generator) -> str:
    """Mean and 95 % bootstrap interval over photographs."""
    means = values[generator.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--skip", type=int, default=0)
    options = parser.parse_args()

    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    photographs = read_photographs(options.images, options.boxes, options.count, options.skip)
    small = sum(photograph.small for photograph in photographs)
    print(f"{describe_machine()}\n{len(photographs)} photographs, {small} of them for localisation\n")
    print("| map | pointing ↑ | positive energy in box ↑ | positive AUC ↓ | negative AUC ↑ |\n|---|---|---|---|---|")
    for method in ("gae", "complete"):
        for gradient in ("full", "leaf", "libra"):
            figures: dict[str, list[float]] = defaultdict(list)
            for start in range(0, len(photographs), 20):
                some = photographs[start : start + 20]
                batch = torch.stack([(photograph.pixels - 0.5) / 0.5 for photograph in some])
                labels = [photograph.label for photograph in some]
                maps = vitrail.explain(model, batch, labels, method=method, gradient=gradient)
                for photograph, scores, large in zip(some, maps.scores, maps.upsample((SIZE, SIZE)), strict=True):
                    if photograph.small:
                        figures["pointing"].append(float(photograph.boxes.flatten()[large.argmax()]))
                        positive = large.clamp(min=0)
                        figures["energy"].append(float((positive * photograph.boxes).sum() / positive.sum()))
                    figures["positive"].append(area(perturbed_hits(model, photograph, scores, descending=True)))
                    figures["negative"].append(area(perturbed_hits(model, photograph, scores, descending=False)))
            generator = np.random.default_rng(0)
            cells = [
                interval(np.array(figures[key]), generator) for key in ("pointing", "energy", "positive", "negative")
            ]
            print(f"| {method}, {gradient} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
