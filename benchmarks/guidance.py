"""Guided and unguided maps by one protocol: which map finds the object, and which shows what the prediction depends on.

The protocol is that of `localisation.py`; figures come with 95 % bootstrap intervals over photographs. Guided maps are
of the photograph's own patches. Photographs of the guide's own class are left out of the rows with that guide. The last
row is what `vitrail explain` does by itself (gradient "auto"): full where a class unlike the target stands against it,
else libra.

    python -m benchmarks.guidance --checkpoint w.safetensors --images imagenet-val --boxes imagenet-val/boxes.csv \
        --guide zebra.jpg --record rows.csv

`--record` keeps every figure of every photograph, with the model's margin (the largest logit less the second) and the
agreement of sign of the full and the libra map; `--rule` prints, by each of the two, how often libra has more of its
positive energy in the box than full.
"""

import argparse
import csv
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vitrail
from vitrail.benchmark.measure import describe_machine
from vitrail.errors import GuideError

from .localisation import MEASURES, Photograph, interval, measures, read_photographs, squashed

CHOICE = "complete"
BINS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 100)


def rows(guide: torch.Tensor | None) -> dict[str, dict[str, Any]]:
    """The maps to compare: their names and what `explain` is asked."""
    asked: dict[str, dict[str, Any]] = {"gae, full": {"method": "gae"}}
    for gradient in ("full", "leaf", "libra"):
        asked[f"complete, {gradient}"] = {"gradient": gradient}
    asked["complete"] = {}
    guides = {"self-drawn": "auto"} | ({} if guide is None else {"photograph": guide})
    for name, picture in guides.items():
        asked[f"complete, full, squashed, {name}"] = {"guide": vitrail.Guide(picture)}
        asked[f"complete, full, wide, {name}"] = {"guide": vitrail.Guide(picture, layout="wide")}
    for name, picture in list(guides.items())[-1:]:
        for gradient in ("leaf", "libra"):
            both = vitrail.Guide(picture, layout="wide", side="both")
            asked[f"complete, {gradient}, wide, both sides, {name}"] = {"guide": both, "gradient": gradient}
    return asked


def measure(
    model: vitrail.VisionModel, photograph: Photograph, asked: dict[str, dict[str, Any]], *, perturb: bool
) -> list[dict[str, Any]]:
    """One record for each map of one photograph."""
    image = photograph.normalised[None]
    found: list[dict[str, Any]] = []
    maps, figures, logits = {}, {}, torch.zeros(0)
    for name, question in asked.items():
        try:
            ex = vitrail.explain(model, image, [photograph.label], **question)
        except GuideError:  # the guide is of this photograph's class
            continue
        maps[name], logits = ex.scores[0], ex.logits
        figures[name] = measures(model, photograph, ex.scores[0], perturb=perturb)
    first, second = logits[0].topk(2).values.tolist()
    agree = (maps["complete, full"].sign() == maps["complete, libra"].sign()).float().mean().item()
    facts = {"file": photograph.name, "right": int(logits[0].argmax()) == photograph.label}
    facts |= {"margin": first - second, "agreement": agree}
    for name, values in figures.items():
        found.append({**facts, "map": name, **values})
    return found


def table(records: list[dict[str, Any]]) -> None:
    """Every map's figures, and how the last row differs from the first, photograph by photograph."""
    by_map: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_map[record["map"]].append(record)
    print("| map | pointing ↑ | positive energy in box ↑ | positive AUC ↓ | negative AUC ↑ |\n|---|---|---|---|---|")
    for name, some in by_map.items():
        cells = [_cell([record[key] for record in some if key in record]) for key in MEASURES]
        print(f"| {name} | " + " | ".join(cells) + " |")
    baseline = {record["file"]: record for record in by_map["gae, full"]}
    differences = {
        key: [r[key] - baseline[r["file"]][key] for r in by_map[CHOICE] if key in r and key in baseline[r["file"]]]
        for key in MEASURES
    }
    print(f"| {CHOICE}, less gae | " + " | ".join(_cell(differences[key]) for key in MEASURES) + " |")


def _cell(values: list[float]) -> str:
    return interval(np.array(values), np.random.default_rng(0)) if values else "–"


def rule(records: list[dict[str, Any]]) -> None:
    """By margin and by agreement of sign: energy in the box of the full and of the libra map, and which has more."""
    by_file: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        by_file[record["file"]][record["map"]] = record
    pairs = [(maps["complete, full"], maps["complete, libra"]) for maps in by_file.values()]
    pairs = [(full, libra) for full, libra in pairs if "energy" in full]
    gain = np.array([libra["energy"] - full["energy"] for full, libra in pairs])
    for key, ends in (("margin", BINS), ("agreement", (0, 0.5, 0.6, 0.7, 0.8, 1.01))):
        values = np.array([full[key] for full, _ in pairs])
        print(f"\ncorrelation of {key} with libra's gain in energy: {np.corrcoef(values, gain)[0, 1]:+.3f}")
        print(f"| {key} | photographs | energy full | energy libra | libra higher |\n|---|---|---|---|---|")
        for low, high in pairwise(ends):
            inside = [pair for pair, value in zip(pairs, values, strict=True) if low <= value < high]
            if inside:
                full, libra = (np.mean([pair[side]["energy"] for pair in inside]) for side in (0, 1))
                higher = np.mean([libra["energy"] > full["energy"] for full, libra in inside])
                print(f"| {low}…{high} | {len(inside)} | {full:.3f} | {libra:.3f} | {higher:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--guide", type=Path, help="a picture of another class; without it only self-drawn guides")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="only photographs whose boxes cover less than half")
    parser.add_argument("--record", type=Path, help="keep every figure as CSV")
    parser.add_argument(
        "--no-perturbation", action="store_true", help="leave out the areas, which take most of the time"
    )
    parser.add_argument("--maps", help="only maps whose name holds one of these words, separated by |")
    parser.add_argument("--rule", action="store_true", help="print how the margin predicts which gradient is better")
    options = parser.parse_args()

    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    photographs = read_photographs(options.images, options.boxes, options.count, options.skip)
    if options.small:
        photographs = [photograph for photograph in photographs if photograph.small]
    small = sum(photograph.small for photograph in photographs)
    print(f"{describe_machine()}\n{len(photographs)} photographs, {small} of them for localisation\n", flush=True)
    guide = None if options.guide is None else (squashed(Image.open(options.guide)) - 0.5) / 0.5
    asked = rows(guide)
    if options.maps:
        words = options.maps.split("|")
        needed = ("gae, full", "complete, full", "complete, libra")
        asked = {key: value for key, value in asked.items() if key in needed or any(word in key for word in words)}
    records: list[dict[str, Any]] = []
    start = time.perf_counter()
    for number, photograph in enumerate(photographs, 1):
        records += measure(model, photograph, asked, perturb=not options.no_perturbation)
        if options.record is not None and (number % 10 == 0 or number == len(photographs)):
            with options.record.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["file", "right", "margin", "agreement", "map", *MEASURES])
                writer.writeheader()
                writer.writerows(records)
    print(f"{time.perf_counter() - start:.0f} s\n")
    table(records)
    if options.rule:
        rule(records)


if __name__ == "__main__":
    main()
