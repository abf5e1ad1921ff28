"""Class rewriting on validation images: how often a random class is reached, and at what PSNR.

Photographs that the model classifies right, each with one random other class as its target (seeded); every figure is
of the picture after rounding to 8 bits, encoded, decoded, preprocessed and classified as any file. Two tables, both
without a budget (`equal_budget.py` has those with one): 1. the photograph at its own resolution; 2. what the model saw
(its own input size, no resizing).

    python -m benchmarks.rewriting --checkpoint w.safetensors --images imagenet-val --labels imagenet-val/boxes.csv
"""

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.counterfactual import classify, rewrite
from vitrail.counterfactual.rewrite_result import encode, similarity
from vitrail.images import read_image

Row = tuple[bool, float, float, float, float]  # reached, p(target), PSNR, L∞ in levels, SSIM


def read_task(model: vitrail.VisionModel, images: Path, labels: Path, count: int, seed: int):
    """The first photographs of the list that the model classifies right, each with its label and a random target."""
    with labels.open(newline="") as lines:
        label_of = {row["file"]: int(row["class_index"]) for row in csv.DictReader(lines)}
    generator, task = np.random.default_rng(seed), []
    for name, label in label_of.items():
        picture = read_image(images / name)
        logits = classify(model, picture)
        if int(logits.argmax()) == label:
            target = int(generator.integers(0, len(logits) - 1))
            task.append((name, picture, label, target + (target >= label)))
        if len(task) == count:
            break
    return task


def measure(model: vitrail.VisionModel, original: np.ndarray, picture: np.ndarray, target: int, until: float) -> Row:
    """What the file of a picture is to the model."""
    answer = classify(model, encode(picture)).softmax(dim=0)
    apart = similarity(original, picture)
    probability = float(answer[target])
    reached = int(answer.argmax()) == target and probability >= until
    return reached, probability, apart.psnr, 255 * apart.linf, apart.ssim


def line(name: str, rows: list[Row], seconds: float) -> str:
    """One row of a table: shares and medians over photographs."""
    reached, probability, psnr, linf, ssim = np.array(rows, dtype=float).T
    clear = reached.astype(bool) & (psnr >= 40)
    return (
        f"| {name} | {reached.mean():.1%} | {clear.mean():.1%} | {np.median(probability):.3f} | {np.median(psnr):.1f} "
        f"({psnr.min():.1f}) | {np.median(linf):.0f} | {np.median(ssim):.4f} | {seconds / len(rows):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="CSV with the columns file and class_index")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=0.9)
    parser.add_argument("--variants", nargs="+", default=["gradient", "sign", "adam"], help="of the first two tables")
    parser.add_argument("--tables", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    options = parser.parse_args()

    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    assert model.preprocess is not None
    exact = replace(model, preprocess=replace(model.preprocess, resize=None))  # for pictures of the model's own size
    task = read_task(model, options.images, options.labels, options.count, options.seed)
    print(
        f"{describe_machine()}\n{len(task)} photographs, random targets of seed {options.seed}, until {options.until}\n"
    )
    columns = ("reached", "at ≥ 40 dB", "median p(target)", "PSNR (least)", "L∞/255", "SSIM", "s each")
    head = f"| {' | '.join(columns)} |\n|{'---|' * 8}"

    def rewriting(small: bool, variant: str) -> None:
        assert model.preprocess is not None
        rows, start = [], time.perf_counter()
        with_ = exact if small else model
        for _, photograph, label, target in task:
            picture = np.array(model.preprocess.view(photograph) if small else photograph)
            how = {"until": options.until, "variant": variant}
            result = rewrite(with_, Image.fromarray(picture), source=label, target=target, method=None, **how)
            rows.append(measure(with_, picture, result.picture, target, options.until))
        print(line(f"rewrite, {variant}", rows, time.perf_counter() - start), flush=True)

    for table, small, where in ((1, False, "the photograph's own resolution"), (2, True, "the model's input size")):
        if table not in options.tables:
            continue
        print(f"\nat {where}, no budget\n\n| variant {head}")
        for variant in options.variants:
            rewriting(small, variant)


if __name__ == "__main__":
    main()
