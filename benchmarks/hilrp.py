"""HiLRP on the scenes of `vitrail bestiary score`, for the bestiary's pyramids: the same measures and intervals.

    pip install hilrp            # not a dependency; it replaces parts of PyTorch and timm for the whole process
    python -m benchmarks.hilrp --model bestiary/pvt -n 200
    vitrail bestiary score --model bestiary/pvt --methods complete --methods gae --methods gradcam -n 200

What is true of each scene is found before HiLRP is called for the first time. Its pixel maps are averaged over the
12 × 12 patches, as all maps of pixels are; one class against another is the difference of their two maps.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import vitrail
from vitrail.bestiary.benchmark import MEASURES, SEED, draw_truths, measured
from vitrail.bestiary.causal import CausalTruth
from vitrail.bestiary.model import normalised
from vitrail.metrics.aggregation import bootstrap

ARCHITECTURES = {"bestiary/pvt": "pvt_v2_b0", "bestiary/swin": "swin_tiny_patch4_window7_224"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(ARCHITECTURES), default="bestiary/pvt")
    parser.add_argument("-n", "--count", type=int, default=200, help="scenes of each kind")
    options = parser.parse_args()
    model = vitrail.load(options.model)

    def report(step: str, done: int, total: int) -> None:
        if done == total:
            print(f"{step}: {total}", file=sys.stderr)

    kinds = ("pair", "single", "chimera")
    worlds = {kind: list(draw_truths(model, kind, options.count, SEED, report)) for kind in kinds}
    hilrp: Any = import_module("hilrp")
    names = list(model.class_names or ())

    def pixels(image: Tensor, name: str) -> Tensor:
        number = names.index(name)
        return hilrp.attribute(model.module, image[None], number, arch=ARCHITECTURES[options.model])["pixel_map"]

    def ask(truths: Sequence[CausalTruth], questions: Sequence[Sequence[tuple[str, str | None]]]) -> Tensor:
        images = normalised(torch.stack([truth.image for truth in truths]))
        maps = [
            [pixels(image, name) - (0 if other is None else pixels(image, other)) for name, other in row]
            for image, row in zip(images, questions, strict=True)
        ]
        return torch.nn.functional.adaptive_avg_pool2d(torch.stack([torch.stack(row) for row in maps]), (12, 12))

    found = measured(worlds, ask)
    for name in MEASURES:
        interval = bootstrap(found.get(name, ()))
        print(f"{name:>16}  {interval}")


if __name__ == "__main__":
    main()
