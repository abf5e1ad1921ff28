"""The rate of `vitrail evaluate` and what it adds to the bare passes: one process, processor time.

    python -m benchmarks.evaluation DATA --checkpoint WEIGHTS [--images 8] [--batch 32]

The bare passes are those that the plan needs: as many rows of the forward pass in full batches, and as many maps
in batches of their own, timed in the same process before and after the run. DATA is a folder of class folders.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.evaluate.cost import passes
from vitrail.evaluate.plan import make_plan
from vitrail.evaluate.runner import evaluate
from vitrail.models.layout import layout_of


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("data")
    words.add_argument("--checkpoint", type=Path)
    words.add_argument("--model", default="timm/vit_tiny_patch16_224")
    words.add_argument("--methods", default="gae,complete")
    words.add_argument("--preset", default="bi")
    words.add_argument("--images", type=int, default=8)
    words.add_argument("--batch", type=int, default=32)
    given = words.parse_args()
    model = vitrail.load(given.model, checkpoint=given.checkpoint)
    assert model.preprocess is not None
    size = model.preprocess.size
    plan = make_plan(given.methods, preset=given.preset)
    layout = layout_of(model, torch.zeros(1, 3, *size))
    cost = passes(plan, size, (layout.rows, layout.cols))
    rows = given.images * (1 + len(plan.methods) * sum(one.rows for one in cost.values()))
    maps = given.images * (1 + sum(one.maps for one in cost.values()))
    print(describe_machine())
    print(f"{given.model}, {given.images} images: {rows:g} rows in batches of {given.batch}, {maps} maps a method")

    before = bare(model, list(plan.methods), round(rows), maps, given.batch, size)
    with tempfile.TemporaryDirectory() as output:
        start, wall = time.process_time(), time.perf_counter()
        done = evaluate(
            model,
            given.data,
            given.methods,
            preset=given.preset,
            limit=given.images,
            batch_size=given.batch,
            output=Path(output) / "run",
        )
        took, wall = time.process_time() - start, time.perf_counter() - wall
    assert done.measured == given.images
    after = bare(model, list(plan.methods), round(rows), maps, given.batch, size)
    needed = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    print(f"bare: rows {needed[0]:.2f} s ({rows / needed[0]:.1f} a second), maps {needed[1]:.2f} s")
    print(f"run:  {took:.2f} s of processor ({wall:.2f} s by the clock, load {os.getloadavg()[0]:.1f})")
    print(f"overhead {took / sum(needed) - 1:+.1%}; bare before {sum(before):.2f} s, after {sum(after):.2f} s")


def bare(model, methods: list[str], rows: int, maps: int, batch: int, size: tuple[int, int]) -> tuple[float, float]:
    """Seconds of processor for the rows and for the maps of all methods."""
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        model.logits(images)
        start = time.process_time()
        for first in range(0, rows, batch):
            model.logits(images[: min(batch, rows - first)])
        forward = time.process_time() - start
    start = time.process_time()
    for method in methods:
        for first in range(0, maps, batch):
            count = min(batch, maps - first)
            vitrail.explain(model, images[:count], [0] * count, method=method.partition(":")[0])
    return forward, time.process_time() - start


if __name__ == "__main__":
    main()
