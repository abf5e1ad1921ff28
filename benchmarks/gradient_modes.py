"""What the gradient mode decides: pointing, energy and perturbation for gae and complete under full, leaf and libra.

The protocol is that of `localisation.py`. Figures come with 95 % bootstrap intervals.

    python benchmarks/gradient_modes.py --checkpoint w.safetensors --images imagenet-val --boxes imagenet-val/boxes.csv
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from localisation import MEASURES, interval, measures, read_photographs

import vitrail
from vitrail.benchmark.machine import describe_machine


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
                batch = torch.stack([photograph.normalised for photograph in some])
                labels = [photograph.label for photograph in some]
                maps = vitrail.explain(model, batch, labels, method=method, gradient=gradient)
                for photograph, scores in zip(some, maps.scores, strict=True):
                    for key, value in measures(model, photograph, scores).items():
                        figures[key].append(value)
            generator = np.random.default_rng(0)
            cells = [interval(np.array(figures[key]), generator) for key in MEASURES]
            print(f"| {method}, {gradient} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
