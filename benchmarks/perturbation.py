"""Positive and negative perturbation as the released script of Transformer-Explainability goes about it, and as we do.

    python -m benchmarks.perturbation --checkpoint W --images FOLDER [--count 16] [--rounds 3]

prints, for the same photographs and maps within one run, the time of the script in four readings, of our protocol on
pixels (the same hits, which is checked) and with tokens left out (hits of its own), and of the bare forward passes that
the pixels need.

The script: batch by batch and share by share, the images are copied, the pixels that `topk` names are set to black, the
copies are normalised, and the model is asked; every measure goes to the processor by itself. It is run once for each
way, and each run asks for the unperturbed images again. Nothing in it switches gradients off, and its batch is of 16
images unless it is told otherwise; `batch=1` and `gradients=False` are the slower and the quicker readings.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.evaluate.batched_queries import QueryBatcher
from vitrail.metrics.faithfulness.perturbation import perturbation
from vitrail.metrics.maps import enlarged
from vitrail.metrics.protocol import Case

__all__ = ["official_loop"]

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def official_loop(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    maps: Tensor,
    labels: Tensor,
    *,
    batch: int = 16,
    gradients: bool = True,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> np.ndarray:
    """Hits of the true class, positive and negative way × nine shares × images.

    `model` gives logits of normalised images and keeps them on its device; `pixels` (images, 3, height, width) go from
    0 to 1; `maps` (images, height, width) are as large as the images; `labels` (images) are the true classes.
    """
    middle, spread = (torch.tensor(one, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for one in (mean, std))
    found = np.zeros((2, len(SHARES), len(pixels)))
    with torch.set_grad_enabled(gradients):
        for way, sign in enumerate((1, -1)):
            for start in range(0, len(pixels), batch):
                some = slice(start, start + batch)
                images, scores, truth = pixels[some], sign * maps[some].flatten(1), labels[some]
                before = model((images - middle) / spread)
                _measures(before, before, truth)
                for step, share in enumerate(SHARES):
                    highest = scores.topk(int(scores.shape[1] * share), dim=-1).indices
                    flat = images.clone().flatten(2)
                    flat.scatter_(2, highest[:, None].repeat(1, flat.shape[1], 1), 0.0)
                    after = model((flat.view_as(images) - middle) / spread)
                    found[way, step, some] = _measures(after, before, truth)[0]
    return found


def _measures(after: Tensor, before: Tensor, truth: Tensor) -> list[np.ndarray]:
    """The script's four numbers of each image, each fetched from the device by itself."""
    probabilities = after.softmax(dim=1)
    second = probabilities.detach().topk(2, dim=1).values[:, 1]
    own = probabilities.gather(1, truth[:, None])[:, 0]
    numbers = [
        (after.detach().argmax(dim=1) == truth).double(),
        (own / second).log(),
        after.detach().amax(dim=1) - before.detach().amax(dim=1),
        probabilities.detach().amax(dim=1) - before.softmax(dim=1).amax(dim=1),
    ]
    return [one.detach().cpu().numpy() for one in numbers]


def our_hits(model: vitrail.VisionModel, pixels: Tensor, maps: Tensor, labels: Tensor, unit: str) -> np.ndarray:
    """The same by the protocol `perturbation`; `maps` are of patches."""
    batcher = QueryBatcher(model, 32)
    normalised = (pixels - 0.5) / 0.5
    cases = [
        Case(
            index=index,
            source=str(index),
            image=image,
            logits=logits,
            target=int(logits.argmax()),
            grid=(maps.shape[1], maps.shape[2]),
            prefix=1,
            black=(-1.0, -1.0, -1.0),
            label=int(label),
        )
        for index, (image, logits, label) in enumerate(zip(normalised, batcher.logits(normalised), labels, strict=True))
    ]
    asked = [perturbation(case, scores, unit=unit) for case, scores in zip(cases, maps, strict=True)]
    hits = np.zeros((2, len(SHARES), len(cases)))
    for number, measured in enumerate(batcher.run(asked, lambda *_: torch.empty(0))):
        if isinstance(measured, Exception):
            raise measured
        for way, name in enumerate(("positive.hit", "negative.hit")):
            hits[way, :, number] = [one.value for one in measured if one.measure == name][1:]
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of timm/vit_tiny_patch16_224")
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = vitrail.load("timm/vit_tiny_patch16_224", checkpoint=given.checkpoint)
    paths = sorted(path for path in given.images.iterdir() if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    pictures = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths[: given.count]]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    explained = vitrail.explain(model, (pixels - 0.5) / 0.5, method="gae", batch_size=8)
    maps, labels = explained.scores, explained.target
    large = enlarged(maps, (224, 224))
    with torch.no_grad():
        passes = (pixels - 0.5).mul(2).repeat(19, 1, 1, 1).split(32)

    def bare() -> None:
        with torch.no_grad():
            for batch in passes:
                model.module(batch)

    rows: dict[str, Callable[[], Any]] = {
        "released script, batch 16, gradients on": lambda: official_loop(model.module, pixels, large, labels),
        "the same, gradients off": lambda: official_loop(model.module, pixels, large, labels, gradients=False),
        "image by image, gradients on": lambda: official_loop(model.module, pixels, large, labels, batch=1),
        "image by image, gradients off": lambda: official_loop(
            model.module, pixels, large, labels, batch=1, gradients=False
        ),
        "vitrail, pixels": lambda: our_hits(model, pixels, maps, labels, "pixel"),
        "vitrail, patches": lambda: our_hits(model, pixels, maps, labels, "patch"),
        "vitrail, tokens left out": lambda: our_hits(model, pixels, maps, labels, "token"),
        "bare forward passes (19 an image)": bare,
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    hits: dict[str, Any] = {}
    for _ in range(given.rounds + 1):  # the first round warms up
        for name, run in rows.items():
            start = time.perf_counter()
            hits[name] = run()
            times[name].append(time.perf_counter() - start)
    print(describe_machine())
    print(f"{len(pixels)} images, {given.rounds} rounds, median\n")
    same = np.array_equal(hits["vitrail, pixels"], hits["released script, batch 16, gradients on"])
    print(f"hits of vitrail, pixels equal those of the script: {'yes' if same else 'NO'}\n")
    names = [name for name in rows if "vitrail" not in name and "bare" not in name]
    print("| | seconds | over the bare passes | " + " | ".join(f"{name}: ×" for name in names) + " |")
    print("| --- " * (3 + len(names)) + "|")
    for name in rows:
        median = statistics.median(times[name][1:])
        # Ratios within a round, since the machine's speed changes from round to round.
        ratios = [_ratio(times[other], times[name]) for other in names]
        over = _ratio(times[name], times["bare forward passes (19 an image)"])
        print(f"| {name} | {median:.2f} | {over:.2f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above[1:], below[1:], strict=True))


if __name__ == "__main__":
    main()
