"""Class rewriting beside targeted FGSM and PGD at equal budget and equal steps.

Photographs that the model classifies right, each with one random other class as its target (seeded). FGSM and PGD are
those of the Adversarial Robustness Toolbox (`pip install "vitrail[bench]"`); a step of PGD is 2.5 budgets by the number
of steps (Madry et al. 2018), and it takes them all. `rewrite` is the package's default within a budget, `rewrite as
published` the raw gradient of the logits' difference; both stop at the probability asked for. Every figure is of the
picture rounded to 8 bits, encoded, decoded, preprocessed and classified as any file:

- `model`: what the model saw, its own input size, no resizing;
- `own`: the photograph at its own resolution. FGSM and PGD are given the resizing as part of the model, as the linear
  map that it is but for Pillow's rounding.

*named*: the target is the first class of the file; *reached*: with the probability asked for as well (95 % Wilson
intervals). Steps are means, seconds medians, of the processor. One row per photograph goes to `--record`; what stands
there already is not computed again.

    python -m benchmarks.equal_budget --checkpoint w.safetensors --images imagenet-val --labels imagenet-val/boxes.csv
"""

import argparse
import csv
import time
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.counterfactual import classify, rewrite
from vitrail.counterfactual.resample import linear_view
from vitrail.counterfactual.rewrite_result import encode, similarity

from .rewriting import read_task

METHODS = ("FGSM", "PGD", "rewrite", "rewrite as published")
COLUMNS = ("photograph", "size", "norm", "budget", "method", "steps", "until", "target", "named", "probability")
COLUMNS += ("psnr", "linf", "l2", "ssim", "taken", "seconds")

Row = dict[str, str]


class FromPixels(nn.Module):
    """The model with its preprocessing, but for rounding: logits of pixels from 0 to 1 of photographs of one size."""

    def __init__(self, model: vitrail.VisionModel, height: int, width: int) -> None:
        super().__init__()
        assert model.preprocess is not None
        self.model, self.view = model, linear_view(model.preprocess, height, width)
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (model.preprocess.mean, model.preprocess.std))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.logits(torch.stack([(self.view(one) - self.mean) / self.std for one in pixels]))


def attack(
    method: str, model: vitrail.VisionModel, picture: np.ndarray, target: int, norm: str, budget: float, steps: int
) -> np.ndarray:
    """The picture that FGSM or PGD makes, in 8 bits."""
    from art.attacks.evasion import (  # pyright: ignore[reportMissingImports]
        FastGradientMethod,
        ProjectedGradientDescentPyTorch,
    )
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    pixels = (picture.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    classes = len(model.class_names or ())
    estimator = PyTorchClassifier(
        model=FromPixels(model, *picture.shape[:2]).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=pixels.shape[1:],
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    common = {"estimator": estimator, "norm": np.inf if norm == "linf" else 2, "eps": budget, "targeted": True}
    if method == "FGSM":
        found = FastGradientMethod(**common).generate(pixels, y=np.eye(classes, dtype=np.float32)[[target]])
    else:
        pgd = ProjectedGradientDescentPyTorch(**common, eps_step=2.5 * budget / steps, max_iter=steps, verbose=False)
        found = pgd.generate(pixels, y=np.eye(classes, dtype=np.float32)[[target]])
    return np.rint(255 * found[0].clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)


def change(
    method: str, model: vitrail.VisionModel, picture: np.ndarray, label: int, target: int, how: dict[str, Any]
) -> tuple[np.ndarray, int]:
    """The picture that a method makes, and the steps it took."""
    norm, budget, steps = how["norm"], how["budget"], how["steps"]
    if method in ("FGSM", "PGD"):
        return attack(method, model, picture, target, norm, budget, steps), 1 if method == "FGSM" else steps
    published = {"objective": "difference", "variant": "gradient", "step": 0.01} if method != "rewrite" else {}
    result = rewrite(model, Image.fromarray(picture), source=label, target=target, method=None, **how, **published)
    return result.picture, len(result.curves) - 1


def measure(model: vitrail.VisionModel, original: np.ndarray, picture: np.ndarray, target: int) -> dict[str, Any]:
    """What the file of a picture is to the model, and how far it lies from the original."""
    answer = classify(model, encode(picture)).softmax(dim=0)
    apart = similarity(original, picture)._asdict()
    return {"named": int(int(answer.argmax()) == target), "probability": float(answer[target]), **apart}


def wilson(hits: int, count: int) -> str:
    """A share with its 95 % interval (Wilson 1927)."""
    z = 1.959964
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return f"{share:.2f} [{max(0.0, middle - half):.2f}, {min(1.0, middle + half):.2f}]"


def table(rows: list[Row], until: float) -> None:
    """One line per method, and the difference of rewriting and PGD, photograph by photograph."""
    by_method: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_method[row["method"]][row["photograph"]] = row
    head = ("method", "photographs", "named", "reached", "PSNR, median (least)", "L∞/255", "L2", "steps", "CPU s")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    hits: dict[str, dict[str, np.ndarray]] = {}
    for method, found in by_method.items():
        got = {name: np.array([float(row[name]) for row in found.values()]) for name in COLUMNS[8:]}
        named = got["named"].astype(bool)
        reached = named & (got["probability"] >= until)
        hits[method] = {key: np.array([n, r], dtype=float) for key, n, r in zip(found, named, reached, strict=True)}
        shares = (wilson(int(some.sum()), len(found)) for some in (named, reached))
        psnr = got["psnr"][np.isfinite(got["psnr"])]
        cells = [method, str(len(found)), *shares, f"{np.median(psnr):.1f} ({psnr.min():.1f})"]
        cells += [f"{255 * np.median(got['linf']):.0f}", f"{np.median(got['l2']):.2f}"]
        print(f"| {' | '.join(cells)} | {got['taken'].mean():.1f} | {np.median(got['seconds']):.1f} |")
    if "PGD" not in hits:
        return
    generator = np.random.default_rng(0)
    for method in (name for name in METHODS[2:] if name in hits):
        both = sorted(hits[method].keys() & hits["PGD"].keys())
        apart = np.array([hits[method][key] - hits["PGD"][key] for key in both])
        means = apart[generator.integers(0, len(both), (10_000, len(both)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        words = [
            f"{w} {apart[:, i].mean():+.2f} [{low[i]:+.2f}, {high[i]:+.2f}]" for i, w in enumerate(("named", "reached"))
        ]
        print(f"\n{method} − PGD on the same {len(both)} photographs: {', '.join(words)}".replace("-", "−"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="CSV with the columns file and class_index")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--budgets", nargs="+", default=["linf:2/255", "linf:4/255", "l2:1"])
    parser.add_argument("--sizes", nargs="+", choices=("model", "own"), default=["model", "own"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--record", type=Path, default=Path("out/equal_budget.csv"))
    options = parser.parse_args()

    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    assert model.preprocess is not None
    exact = replace(model, preprocess=replace(model.preprocess, resize=None))  # for pictures of the model's own size
    task = read_task(model, options.images, options.labels, options.count, options.seed)
    print(
        f"{describe_machine()}\n{len(task)} photographs, random targets of seed {options.seed}, {options.steps} steps"
    )
    options.record.parent.mkdir(parents=True, exist_ok=True)
    known: dict[tuple[str, ...], Row] = {}
    if options.record.exists():
        with options.record.open(newline="") as lines:
            known = {tuple(row[name] for name in COLUMNS[:8]): row for row in csv.DictReader(lines)}
    with options.record.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not known:
            writer.writeheader()
        for size in options.sizes:
            for written in options.budgets:
                norm, _, number = written.partition(":")
                rows = []
                for method in options.methods:
                    for name, photograph, label, target in task:
                        asked = (name, size, norm, number, method, options.steps, options.until, target)
                        key = tuple(str(value) for value in asked)
                        if key not in known:
                            with_ = exact if size == "model" else model
                            picture = np.array(model.preprocess.view(photograph) if size == "model" else photograph)
                            how = {"norm": norm, "budget": float(Fraction(number)), "steps": options.steps}
                            started = time.process_time()
                            made, taken = change(method, with_, picture, label, target, how | {"until": options.until})
                            seconds = time.process_time() - started
                            found = measure(with_, picture, made, target) | {"taken": taken, "seconds": seconds}
                            writer.writerow(dict(zip(COLUMNS, (*asked, *(found[c] for c in COLUMNS[8:])), strict=True)))
                            file.flush()
                            known[key] = {name: str(value) for name, value in zip(COLUMNS, asked, strict=False)}
                            known[key] |= {name: str(value) for name, value in found.items()}
                        rows.append(known[key])
                where = "the model's input size" if size == "model" else "the photograph's own resolution"
                print(f"\nAt {where}, {norm} ≤ {number}\n")
                table(rows, options.until)


if __name__ == "__main__":
    main()
