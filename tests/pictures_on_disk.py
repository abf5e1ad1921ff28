"""Small pictures in files, and a model without weights that knows four classes, for the tests of data sets."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitrail.models import Preprocess, VisionModel

NAMES = ("horse", "bald eagle, American eagle", "crane", "crane")


def toy(names=NAMES, size=(32, 32)) -> VisionModel:
    return VisionModel(torch.nn.Identity(), "toy", Preprocess(size=size, resize=None), names)


def draw(path: Path, size=(20, 16), seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    for seed, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            draw(root / name / f"{number}.png", seed=100 * seed + number)
    return root


def sources(data) -> list[str]:
    return [data.source(index) for index in range(len(data))]


def labels(data) -> list[int | None]:
    return [data.sample(index).label for index in range(len(data))]
