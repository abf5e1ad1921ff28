"""What the paper says of its maps, in numbers: class dependence, the sign on the other object, the stitched zebra.

1. `classes`: Pearson's correlation between the maps of two classes of one image. The paper's absolute gradient is said
   to show the encoder rather than the class, so its maps should hardly depend on the class.
2. `objects`: on photographs with masks of two kinds of object, how many of the patches on the *other* object are
   negative, beside the share of negative patches anywhere in the map: only what exceeds that is a finding. `pairs`
   counts the same on photographs of two animals whose patches were marked by eye.
3. `stitched`: each photograph squashed to the left half beside a zebra (224×224), its label explained, 16×16 patches
   set to black before normalisation at 0 %, 10 % … 90 %; score top-1 = label, area by trapezoid with 0 at 100 %. Two
   controls: GAE(label) − GAE(zebra), which has signs too; and the photograph's own half alone, the zebra half being
   black from the start, where nothing can be gained by finding the zebra.

Figures come with 95 % bootstrap intervals over images.

    python -m benchmarks.paper_claims --checkpoint w.safetensors --data folder --only classes objects
    python -m benchmarks.paper_claims --checkpoint w.safetensors --data folder --only stitched --count 199

`--data` holds pairs/, one-per-class/ (files named n02391049_zebra.JPEG), coco-val/ (images/, masks/, classes.yaml) and
imagenet-val/ with boxes.csv.
"""

import argparse
import csv
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vitrail
from vitrail.benchmark.measure import describe_machine

from .localisation import area, interval

SIZE, PATCH, SIDE = 224, 16, 14
ZEBRA = 340
SHARES = [step / 10 for step in range(10)]
MAPS: dict[str, dict[str, Any]] = {
    "absolute": {"method": "absolute"},
    "gae": {"method": "gae"},
    "complete, full": {"method": "complete", "gradient": "full"},
    "complete, leaf": {"method": "complete", "gradient": "leaf"},
    "complete, libra": {"method": "complete", "gradient": "libra"},
}
PAIRS = {
    **{f"el{number}.png": ("zebra", "African elephant") for number in range(1, 6)},
    "catdog.png": ("bull mastiff", "tiger cat"),
    "cat_dog_original.jpg": ("bull mastiff", "tiger cat"),
}
# Where the two animals of PAIRS are: blocks of patches (top, bottom, left, right; ends excluded) of the centre crop.
MARKED = {
    "el1.png": ([(6, 9, 0, 3), (5, 7, 2, 4), (9, 11, 1, 2)], [(1, 11, 8, 13), (4, 12, 7, 9)]),
    "el2.png": (
        [(7, 10, 6, 13), (6, 8, 10, 14), (10, 13, 6, 8), (10, 13, 10, 11)],
        [(0, 5, 3, 10), (5, 7, 3, 5), (5, 7, 6, 7), (2, 6, 0, 3)],
    ),
    "el3.png": ([(9, 12, 4, 14), (7, 9, 7, 10)], [(3, 12, 0, 2), (4, 6, 2, 4), (6, 7, 5, 9)]),
    "el4.png": ([(6, 11, 0, 3), (7, 10, 3, 7), (7, 10, 9, 14), (10, 13, 5, 11)], [(1, 6, 0, 14)]),
    "el5.png": (
        [(9, 11, 0, 1), (9, 11, 4, 12), (11, 13, 0, 3), (11, 13, 4, 9), (11, 13, 12, 14)],
        [(7, 9, 0, 2), (7, 9, 3, 5), (7, 9, 11, 13)],
    ),
    "catdog.png": ([(0, 8, 5, 9)], [(8, 13, 9, 12), (10, 14, 2, 10)]),
    "cat_dog_original.jpg": ([(0, 8, 4, 9)], [(8, 13, 10, 13), (10, 14, 2, 10)]),
}
SIGNS = ["positive on own object", "negative on the other", "negative anywhere", "excess on the other"]
# COCO's kinds of object, by name, and the ImageNet classes that are of that kind.
KINDS: dict[str, list[int]] = {
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)], "cat": [*range(281, 286)], "dog": [*range(151, 269)],
    "elephant": [101, 385, 386], "zebra": [340], "bear": [294, 295, 296, 297], "sheep": [348, 349], "cow": [345],
    "horse": [339], "banana": [954], "orange": [950], "broccoli": [937], "pizza": [963], "hot dog": [934],
    "laptop": [620, 681], "keyboard": [508], "mouse": [673], "tv": [664, 782, 851], "remote": [761],
    "cell phone": [487], "toilet": [861], "microwave": [651], "refrigerator": [760], "toaster": [859],
    "clock": [409, 892], "vase": [883], "teddy bear": [850], "umbrella": [879], "traffic light": [920],
    "parking meter": [704], "bench": [703], "couch": [831], "dining table": [532], "cup": [504, 968],
    "bus": [654, 779, 874], "train": [466, 547, 820], "airplane": [404, 895], "motorcycle": [665, 670],
    "bicycle": [444, 671], "boat": [472, 554, 625, 814, 914], "car": [436, 468, 511, 609, 656, 751, 817],
    "truck": [555, 569, 717, 864, 867], "sports ball": [430, 522, 722, 768, 805, 852, 890], "tie": [906],
}  # fmt: skip


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, of two maps."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])


def report(title: str, columns: list[str], figures: dict[str, dict[str, list[float]]]) -> None:
    generator = np.random.default_rng(0)
    print(f"\n{title}\n\n| map | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, row in figures.items():
        cells = [f"{interval(np.array(row[c]), generator)} ({len(row[c])})" if row[c] else "–" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def class_dependence(model: vitrail.VisionModel, data: Path, count: int, _: float) -> None:
    """How alike the maps of two classes of one image are."""
    generator = np.random.default_rng(0)
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pairs = [data / "pairs" / name for name in PAIRS]
    singles = sorted((data / "one-per-class").iterdir())[:count]
    for path in [path for path in pairs if path.exists()] + singles:
        logits = vitrail.explain(model, path, method="raw").logits[0]
        best, second = logits.topk(2).indices.tolist()
        random = int(generator.choice([i for i in range(len(logits)) if i not in (best, second)]))
        asked = [best, second, random]
        named = PAIRS.get(path.name) if path.parent.name == "pairs" else None
        if named:
            asked += [model.class_index(name) for name in named]
        for name, options in MAPS.items():
            maps = vitrail.explain(model, path, [asked], **options).scores[0]
            if named:
                figures[name]["the two animals of a pair"].append(correlation(maps[3], maps[4]))
            else:
                figures[name]["predicted, runner-up"].append(correlation(maps[0], maps[1]))
                figures[name]["predicted, random class"].append(correlation(maps[0], maps[2]))
    columns = ["the two animals of a pair", "predicted, runner-up", "predicted, random class"]
    report("Correlation between the maps of two classes of one image", columns, figures)


def kinds_in(mask: np.ndarray, names: dict[int, str]) -> Iterator[tuple[str, Tensor]]:
    """The kinds of object in a mask, each with the patches of which it covers at least half; four patches or more."""
    for index in np.unique(mask):
        name = names.get(int(index), "")
        if name in KINDS:
            covered = torch.from_numpy(mask == index).float().reshape(SIDE, PATCH, SIDE, PATCH).mean(dim=(1, 3)) >= 0.5
            if covered.sum() >= 4:
                yield name, covered


def count_signs(
    model: vitrail.VisionModel,
    path: Path,
    objects: tuple[tuple[int, Tensor], tuple[int, Tensor]],
    figures: dict[str, dict[str, list[float]]],
) -> None:
    """Add one photograph: two classes with the patches of each, asked both ways and counted as one."""
    (first, on_first), (second, on_second) = objects
    both = {name: vitrail.explain(model, path, [[first, second]], **how).scores[0] for name, how in MAPS.items()}
    both["gae − gae(other)"] = both["gae"] - both["gae"].flip(0)
    for loss in ("normalized_difference", "difference"):
        question = {"against": [[second, first]], "objective": loss, "gradient": "full"}
        ex = vitrail.explain(model, path, [[first, second]], **question)
        both[f"complete, {loss.replace('_', ' ')}"] = ex.scores[0]
    for name, maps in both.items():
        rows = []
        for scores, mine, far in ((maps[0], on_first, on_second), (maps[1], on_second, on_first)):
            negative = (scores < 0).float()
            rows.append([float(x) for x in (1 - negative[mine].mean(), negative[far].mean(), negative.mean())])
        means = [float(value) for value in np.mean(rows, axis=0)]
        for column, value in zip(SIGNS, [*means, means[1] - means[2]], strict=True):
            figures[name][column].append(value)


def signs_on_pairs(model: vitrail.VisionModel, data: Path, *_: float) -> None:
    """The same on the photographs of two animals, whose patches were marked by eye."""
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file, marked in MARKED.items():
        objects = []
        for name, blocks in zip(PAIRS[file], marked, strict=True):
            patches = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            for top, bottom, left, right in blocks:
                patches[top:bottom, left:right] = True
            objects.append((model.class_index(name), patches))
        alone: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        count_signs(model, data / "pairs" / file, (objects[0], objects[1]), alone)
        for name in (name for name in alone if name.startswith("complete")):
            own, far, anywhere = (alone[name][column][0] for column in SIGNS[:3])
            print(f"{file}, {name}: own > 0 {own:.2f}, other < 0 {far:.2f}, anywhere < 0 {anywhere:.2f}", flush=True)
        for name, row in alone.items():
            for column, values in row.items():
                figures[name][column] += values
    report(f"Share of patches by sign, {len(MARKED)} photographs of two animals", SIGNS, figures)


def signs_on_objects(model: vitrail.VisionModel, data: Path, count: int, _: float) -> None:
    """The sign on the object that is asked about, on the other one, and anywhere."""
    assert model.preprocess is not None
    coco = data / "coco-val"
    lines = (coco / "classes.yaml").read_text().splitlines()
    names = {int(m[1]): m[2] for line in lines if (m := re.match(r"\s+(\d+): (.+)", line))}
    nearest = replace(model.preprocess, interpolation="nearest")
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    asked = []
    for path in sorted((coco / "images").iterdir())[:count]:
        mask = Image.open(coco / "masks" / f"{path.stem}.png").convert("RGB")
        found = sorted(kinds_in(np.asarray(nearest.view(mask))[..., 0], names), key=lambda one: -int(one[1].sum()))
        if len(found) < 2:
            continue
        logits = vitrail.explain(model, path, method="raw").logits[0]
        (one, on_one), (other, on_other) = found[:2]
        first, second = (max(KINDS[kind], key=lambda index: float(logits[index])) for kind in (one, other))
        asked.append(f"{path.stem}: {model.class_name(first)} / {model.class_name(second)}")
        count_signs(model, path, ((first, on_one), (second, on_other)), figures)
    report(f"Share of patches by sign, {len(asked)} photographs with masks of two kinds of object", SIGNS, figures)
    print("\n" + "; ".join(asked))


def stitch(left: Image.Image, right: Image.Image) -> Tensor:
    """Two pictures squashed to half the width each, side by side: pixels from 0 to 1."""
    halves = [np.asarray(one.resize((SIZE // 2, SIZE), Image.Resampling.BICUBIC)) for one in (left, right)]
    return torch.from_numpy(np.concatenate(halves, axis=1)).permute(2, 0, 1).float() / 255


def masked(pixels: Tensor, order: Tensor) -> Tensor:
    """The picture with the first 10 %, 20 % … 90 % of the patches in `order` black."""
    some = []
    for share in SHARES[1:]:
        keep = torch.ones(SIDE * SIDE)
        keep[order[: int(len(order) * share)]] = 0
        mask = keep.reshape(1, SIDE, SIDE).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        some.append(pixels * mask)
    return torch.stack(some)


def one_per_class(data: Path, count: int) -> list[tuple[Path, int]]:
    """The first photograph of each class of the box list, in its order, without zebras."""
    first: dict[int, str] = {}
    with (data / "imagenet-val" / "boxes.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            first.setdefault(int(row["class_index"]), row["file"])
    return [(data / "imagenet-val" / file, index) for index, file in first.items() if index != ZEBRA][:count]


def stitched(model: vitrail.VisionModel, data: Path, count: int, minutes: float) -> None:
    """The paper's perturbation experiment with its controls; stops, in the list's order, when its time is up."""
    zebra = Image.open(next((data / "one-per-class").glob("*_zebra.*"))).convert("RGB")
    left = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE)[:, : SIDE // 2].flatten()
    curves: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    signs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    started = time.perf_counter()
    done = 0
    for path, label in one_per_class(data, count):
        if time.perf_counter() - started > 60 * minutes:
            break
        done += 1
        pixels = stitch(Image.open(path).convert("RGB"), zebra)
        batch = (pixels[None] - 0.5) / 0.5
        gae = vitrail.explain(model, batch, [[label, ZEBRA]], method="gae").scores[0]
        maps = {
            "gae": gae[0],
            "gae − gae(zebra)": gae[0] - gae[1],
            "complete": vitrail.explain(model, batch, label, gradient="full").scores[0],
        }
        orders: dict[tuple[str, str], Tensor] = {}
        for name, scores in maps.items():
            flat = scores.flatten()
            for way in ("positive", "negative"):
                orders[name, way] = flat.argsort(descending=way == "positive", stable=True)
                own = flat[left].argsort(descending=way == "positive", stable=True)
                orders[f"{name}, own half", way] = left[own]
            signs[name]["own half > 0"].append(float((scores[:, : SIDE // 2] > 0).float().mean()))
            signs[name]["zebra half < 0"].append(float((scores[:, SIDE // 2 :] < 0).float().mean()))
        alone = pixels.clone()
        alone[:, :, SIZE // 2 :] = 0
        many = [masked(alone if len(order) == len(left) else pixels, order) for order in orders.values()]
        with torch.no_grad():
            all_of_them = torch.cat([pixels[None], alone[None], *many])
            hits = (
                torch.cat([model.logits((some - 0.5) / 0.5).argmax(dim=1) for some in all_of_them.split(32)]) == label
            )
        plain = hits.float().numpy()[:2]
        for key, hit in zip(orders, hits[2:].float().reshape(len(orders), -1).numpy(), strict=True):
            curves[key].append(np.append(plain[int(len(orders[key]) == len(left))], hit))
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, way), rows in curves.items():
        figures[name][f"{way} AUC"] = [area(row) for row in rows]
    for one, other in (("complete", "gae"), ("complete", "gae − gae(zebra)")):
        for half in ("", ", own half"):
            for way in ("positive AUC", "negative AUC"):
                pairs = zip(figures[one + half][way], figures[other + half][way], strict=True)
                figures[f"**{one} minus {other}{half}**"][way] = [a - b for a, b in pairs]
    seconds = time.perf_counter() - started
    title = f"Stitched with the zebra, {done} photographs, {seconds:.0f} s"
    report(title, ["positive AUC", "negative AUC"], figures)
    report("Signs", ["own half > 0", "zebra half < 0"], signs)
    print("\nTop-1 at 0 %, 10 % … 90 %")
    for (name, way), rows in curves.items():
        print(f"| {name} | {way} | " + " ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + " |")


CLAIMS = {"classes": class_dependence, "pairs": signs_on_pairs, "objects": signs_on_objects, "stitched": stitched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(CLAIMS), default=list(CLAIMS))
    parser.add_argument("--count", type=int, default=199)
    parser.add_argument("--minutes", type=float, default=60, help="for the stitched photographs")
    options = parser.parse_args()
    model = vitrail.load(options.model, checkpoint=options.checkpoint)
    print(describe_machine())
    for name in options.only:
        CLAIMS[name](model, options.data, options.count, options.minutes)


if __name__ == "__main__":
    main()
