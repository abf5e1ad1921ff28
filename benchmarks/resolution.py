"""Maps finer than a patch: what each route to them is worth, beside controls that know nothing of the model.

    python -m benchmarks.resolution --part bestiary --count 100
    python -m benchmarks.resolution --part photographs --checkpoint w.safetensors --data folder --count 100
    python -m benchmarks.resolution --part deletion --checkpoint w.safetensors --data folder --count 100
    python -m benchmarks.resolution --part cost

Routes: a map of patches upsampled (nearest, bilinear, or guided by the image: joint bilateral, Kopf et al. 2007); the
model at twice the input; the mean over shifts by parts of a patch; the least-squares map whose patch sums are those of
all shifts; a patch's score shared among its cells by x ∇x, alone and with shifts, which is `explain(resolution=…)`; the
same with the image's edges in the place of x ∇x, which is a control; and x ∇x by itself. All of the default map.

- bestiary: single creatures, cells of 4 and 2 pixels (`--cells`). `rank`: Spearman's correlation of the cells' scores
  with the effect of redrawing them without the creature (`bestiary.cell_truth`), over the cells of the creature;
  `within`: the same of what differs within patches; AUPR, energy and pointing: by the creature's mask.
- photographs: COCO's masks (the class of the largest kind of object) and ImageNet's boxes, cells of 8 pixels.
- deletion: cells of 8 pixels set to black, the highest scores first (positive) or the lowest (negative), 10 % … 90 %;
  area under the target's probability. Also `attn_lrp`, summed over the pixels of a cell.
- cost: multiples of one map's time, and of the bytes of its tensors, for ViT-Ti, S and B of random weights.

A figure is the mean over images; behind it the mean difference to bilinear, with a 95 % interval.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

import vitrail
from vitrail.bestiary import cell_truth, sample_scene
from vitrail.bestiary.model import normalised
from vitrail.bestiary.species import CLASS_NAMES
from vitrail.guidance.stitching import widened
from vitrail.memory import Allocations
from vitrail.methods.within_patch import enlarged, shared_within
from vitrail.metrics.maps import rank_correlation
from vitrail.views import CellMeans, moved, views_of

from .localisation import read_photographs
from .paper_claims import KINDS, kinds_in

JUDGED = 6_000_000  # seeds from here on chose nothing
SHIFTS = 4
Figures = dict[str, dict[str, list[float]]]


def routes(
    model: vitrail.VisionModel, larger: vitrail.VisionModel, images: Tensor, target: int, patch: int, cells: int
) -> Iterator[tuple[str, Tensor]]:
    """Each route's name and passes, and its map of the cells, in float64."""

    def ask(batch: Tensor, **words: Any) -> Tensor:
        return vitrail.explain(model, batch, target, **words).scores.double()[None]

    patches = ask(images)
    size = (images.shape[-2], images.shape[-1])
    side = patch // cells
    views = views_of("shift", SHIFTS, (patch, patch))
    yield "nearest (1)", enlarged(patches, cells)[0, 0]
    yield "bilinear (1)", interpolate(patches, scale_factor=cells, mode="bilinear")[0, 0]
    yield "image-guided (1)", joint_bilateral(patches[0, 0], images[0].double(), side, cells)
    edges = edges_of(images, side)
    yield "edges (1), a control", shared_within(patches.abs(), edges)[0, 0] * enlarged(patches.sign(), cells)[0, 0]
    shifted, edged, seen = CellMeans(size), CellMeans(size), []
    for view in views:
        batch = moved(images, view)
        one = ask(batch)
        seen.append(one[0, 0])
        shifted.add(enlarged(one, cells), view)
        edged.add(shared_within(one.abs(), edges_of(batch, side)) * enlarged(one.sign(), cells), view)
    yield f"edges, {SHIFTS} shifts ({SHIFTS}), a control", edged.mean()[0, 0]
    yield f"{SHIFTS} shifts ({SHIFTS})", shifted.mean()[0, 0]
    yield f"{SHIFTS} shifts, least squares ({SHIFTS})", least_squares(seen, views, patch, cells)
    doubled = interpolate(images, scale_factor=2, mode="bicubic")
    fine = vitrail.explain(larger, doubled, target).scores.double()[None]
    yield (
        "twice the input (4+)",
        interpolate(fine, scale_factor=cells / 2, mode="bilinear")[0, 0] if cells > 2 else fine[0, 0],
    )
    alone = ask(images, resolution=cells, effort=1)[0, 0]
    yield "within the patch (1)", alone
    yield f"resolution={cells} ({SHIFTS})", ask(images, resolution=cells)[0, 0]


def edges_of(images: Tensor, side: int) -> Tensor:
    """How much each cell differs from its blurred self, (1, 1, rows, cols)."""
    grey = images.double().mean(dim=1, keepdim=True)
    return avg_pool2d((grey - avg_pool2d(grey, 3, 1, 1)).abs(), side)


def joint_bilateral(patches: Tensor, image: Tensor, side: int, cells: int) -> Tensor:
    """Kopf et al. 2007: the patches around a cell, weighted by distance and by how alike the image is there."""
    fine, coarse = avg_pool2d(image, side), avg_pool2d(image, side * cells)
    rows, cols = fine.shape[-2:]
    total, weight = torch.zeros(rows, cols, dtype=torch.float64), torch.zeros(rows, cols, dtype=torch.float64)
    row, col = torch.arange(rows)[:, None], torch.arange(cols)[None]
    for down in range(-2, 3):
        for right in range(-2, 3):
            at_row = (row // cells + down).clamp(0, patches.shape[0] - 1)
            at_col = (col // cells + right).clamp(0, patches.shape[1] - 1)
            distance = ((row + 0.5) / cells - at_row - 0.5) ** 2 + ((col + 0.5) / cells - at_col - 0.5) ** 2
            unlike = ((fine - coarse[:, at_row, at_col]) ** 2).sum(dim=0)
            part = torch.exp(-distance / (2 * 0.7**2) - unlike / (2 * 0.4**2))
            total, weight = total + part * patches[at_row, at_col], weight + part
    return total / weight.clamp(min=1e-300)


def least_squares(seen: list[Tensor], views: list[Any], patch: int, cells: int, ridge: float = 1.0) -> Tensor:
    """The map nearest to the bilinear one whose patch means are those measured in every view."""
    rows, cols = seen[0].shape
    side = patch // cells
    index = torch.arange(rows * cols * cells**2).reshape(1, 1, rows * cells, cols * cells).double()
    equations, values = [], []
    for scores, view in zip(seen, views, strict=True):
        down, right = view.down // side, view.right // side
        larger = pad(index, (cells, cells, cells, cells), mode="reflect")[0, 0].long()
        shown = larger[cells - down : cells - down + rows * cells, cells - right : cells - right + cols * cells]
        members = shown.reshape(rows, cells, cols, cells).permute(0, 2, 1, 3).reshape(rows * cols, -1)
        equations.append(
            torch.zeros(rows * cols, index.numel(), dtype=torch.float64).scatter_add_(
                1, members, torch.full(members.shape, 1 / cells**2, dtype=torch.float64)
            )
        )
        values.append(scores.flatten())
    matrix, measured = torch.cat(equations), torch.cat(values)
    prior = interpolate(seen[0][None, None], scale_factor=cells, mode="bilinear").flatten()
    gram = matrix @ matrix.T + ridge / cells**2 * torch.eye(len(matrix), dtype=torch.float64)
    found = prior + matrix.T @ torch.linalg.solve(gram, measured - matrix @ prior)
    return found.reshape(rows * cells, cols * cells)


def by_mask(scores: Tensor, mask: Tensor) -> dict[str, float]:
    """AUPR, energy and pointing of the cells, for the share of each that the mask covers."""
    order = scores.flatten().argsort(descending=True, stable=True)
    inside = (mask.flatten() > 0.5)[order].double()
    precision = inside.cumsum(0) / torch.arange(1, len(inside) + 1)
    positive = scores.clamp(min=0)
    return {
        "AUPR": float((precision * inside).sum() / inside.sum()),
        "energy": float((positive * mask).sum() / positive.sum().clamp(min=1e-12)),
        "pointing": float(mask.flatten()[order[0]] > 0.5),
    }


def add(figures: Figures, name: str, measured: dict[str, float]) -> None:
    for column, value in measured.items():
        figures[name][column].append(value if value == value else 0.0)  # no rank where all scores are the same


def difference(one: list[float], other: list[float]) -> str:
    gain = np.array(one) - np.array(other)
    return f"{gain.mean():+.3f} ± {1.96 * gain.std(ddof=1) / len(gain) ** 0.5:.3f}"


def report(title: str, figures: Figures) -> None:
    columns = list(next(iter(figures.values())))
    base = figures["bilinear (1)"]
    count = len(base[columns[0]])
    print(f"\n{title}, {count} images\n\n| route (passes) | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, row in figures.items():
        cells = []
        for column in columns:
            more = "" if row is base else f" ({difference(row[column], base[column])})"
            cells.append(f"{np.mean(row[column]):.3f}{more}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    ours = next(name for name in figures if name.startswith("resolution="))
    for other in (name for name in figures if name.startswith((f"edges, {SHIFTS}", "nearest", "attn_lrp"))):
        told = (f"{column} {difference(figures[ours][column], figures[other][column])}" for column in columns)
        print(f"\n{ours} less {other}: {', '.join(told)}", flush=True)


def bestiary(options: argparse.Namespace) -> None:
    """Routes on single creatures, against the effect of redrawing cells."""
    model = vitrail.load("bestiary")
    larger = larger_of(model)
    patch = 8
    figures: Figures = defaultdict(lambda: defaultdict(list))
    reliable = []
    scenes = [sample_scene("single", seed=JUDGED + number) for number in range(options.count)]
    side = patch // options.cells
    samples = 1600 * (options.cells // 2) ** 2
    for number, truth in enumerate(cell_truth(model.module, scenes, side=side, samples=samples)):
        target = CLASS_NAMES.index(scenes[number].labels[0])
        rows, cols = truth.cells.T
        effects = truth.effects[:, target]
        reliable.append(rank_correlation(*(half[:, target] for half in truth.halves)))
        mask = avg_pool2d(torch.from_numpy(truth.drawn.creatures[0].mask).double()[None], side)[0]
        patches = rows // options.cells * 100 + cols // options.cells
        for name, scores in routes(model, larger, normalised(truth.image)[None], target, patch, options.cells):
            own = scores[rows, cols]
            measured = {
                "rank": rank_correlation(own, effects),
                "within": rank_correlation(within(own, patches), within(effects, patches)),
            }
            add(figures, name, measured | by_mask(scores, mask))
        progress(number, options.count)
    report(f"Bestiary, cells of {side} pixels (the two halves of the truth agree by {np.mean(reliable):.2f})", figures)


def within(values: Tensor, patches: Tensor) -> Tensor:
    """The values less the mean of their patch."""
    found = values.clone()
    for one in patches.unique():
        found[patches == one] -= values[patches == one].mean()
    return found.round(decimals=12)


def larger_of(model: vitrail.VisionModel) -> vitrail.VisionModel:
    """The same model for inputs of twice the side, its position embeddings resampled."""
    assert model.preprocess is not None
    height, width = model.preprocess.size
    module: Any = model.module
    patches = (
        2 * height // module.patch_embed.patch_size[0],
        2 * width // module.patch_embed.patch_size[1],
    )
    return widened(model, (2 * height, 2 * width), patches, 3)[0]


def photographs(options: argparse.Namespace) -> None:
    """Routes on COCO's masks and ImageNet's boxes."""
    model = vitrail.load("timm/vit_tiny_patch16_224", checkpoint=options.checkpoint)
    larger = larger_of(model)
    cells, patch = 2, 16
    for title, pictures in (("COCO's masks", masked(model, options)), ("ImageNet's boxes", boxed(options))):
        figures: Figures = defaultdict(lambda: defaultdict(list))
        for number, (images, target, mask) in enumerate(islice(pictures, options.count)):
            inside = avg_pool2d(mask.double()[None], patch // cells)[0]
            for name, scores in routes(model, larger, images, target, patch, cells):
                add(figures, name, by_mask(scores, inside))
            progress(number, options.count)
        report(f"{title}, cells of 8 pixels", figures)


def masked(model: vitrail.VisionModel, options: argparse.Namespace) -> Iterator[tuple[Tensor, int, Tensor]]:
    """COCO's photographs with the likeliest class of the largest object, and the mask of that object's kind."""
    assert model.preprocess is not None
    coco = Path(options.data) / "coco-val"
    lines = (coco / "classes.yaml").read_text().splitlines()
    names = {int(line.split(":")[0]): line.split(": ")[1] for line in lines if line.strip()[:1].isdigit()}
    ids = {name: index for index, name in names.items()}
    nearest = replace(model.preprocess, interpolation="nearest")
    for path in sorted((coco / "images").iterdir()):
        mask = np.asarray(nearest.view(Image.open(coco / "masks" / f"{path.stem}.png").convert("RGB")))[..., 0]
        found = sorted(kinds_in(mask, names), key=lambda one: -int(one[1].sum()))
        if not found:
            continue
        kind = found[0][0]
        images = model.preprocess(Image.open(path).convert("RGB"))[None]
        with torch.no_grad():
            logits = model.logits(images)[0]
        yield images, max(KINDS[kind], key=lambda index: float(logits[index])), torch.from_numpy(mask == ids[kind])


def boxed(options: argparse.Namespace) -> Iterator[tuple[Tensor, int, Tensor]]:
    """ImageNet's photographs whose boxes cover less than half."""
    folder = Path(options.data) / "imagenet-val"
    for one in read_photographs(folder, folder / "boxes.csv", 300, 0):
        if one.small:
            yield one.normalised[None], one.label, one.boxes


def deletion(options: argparse.Namespace) -> None:
    """Cells of 8 pixels set to black in the order of each map."""
    model = vitrail.load("timm/vit_tiny_patch16_224", checkpoint=options.checkpoint)
    larger = larger_of(model)
    folder = Path(options.data) / "imagenet-val"
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for number, one in enumerate(read_photographs(folder, folder / "boxes.csv", options.count, 0)):
        images = one.normalised[None]
        with torch.no_grad():
            target = int(model.logits(images).argmax())
        maps = dict(routes(model, larger, images, target, 16, 2))
        lrp = vitrail.explain(model, images, target, method="attn_lrp").scores.double()
        maps["attn_lrp (1)"] = avg_pool2d(lrp, 8)[0] if lrp.shape[-1] == 224 else enlarged(lrp, 2)[0]
        for name, scores in maps.items():
            add(
                figures,
                name,
                {
                    "positive ↓": area(model, one.pixels, scores, target, True),
                    "negative ↑": area(model, one.pixels, scores, target, False),
                },
            )
        progress(number, options.count)
    report("Deletion, cells of 8 pixels", figures)


@torch.no_grad()
def area(model: vitrail.VisionModel, pixels: Tensor, scores: Tensor, target: int, descending: bool) -> float:
    order = scores.flatten().argsort(descending=descending, stable=True)
    batch = []
    for share in range(10):
        keep = torch.ones(order.numel())
        keep[order[: order.numel() * share // 10]] = 0
        batch.append(pixels * enlarged(keep.reshape(scores.shape), pixels.shape[-1] // scores.shape[-1]))
    found = model.logits((torch.stack(batch) - 0.5) / 0.5).softmax(dim=1)[:, target]
    return float(torch.trapezoid(torch.cat([found, found.new_zeros(1)]), dx=0.1))


COSTS: dict[str, dict[str, Any]] = {
    "one map": {},
    "resolution=2, one view": {"resolution": 2, "effort": 1},
    "resolution=2": {"resolution": 2},
    "resolution=4": {"resolution": 4},
    "resolution=pixel, 6 views": {"resolution": "pixel", "effort": 6},
    "smooth=flip": {"smooth": "flip"},
}


def cost(options: argparse.Namespace) -> None:
    """Multiples of one map, by rounds that take turns."""
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"):
        model = vitrail.wrap(timm.create_model(name).eval())
        images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.rounds + 1):
            for row, words in COSTS.items():
                start = time.perf_counter()
                vitrail.explain(model, images, 3, **words)
                taken[row].append(time.perf_counter() - start)
        print(f"\n{name}\n\n| map | seconds | multiple | peak | multiple |\n| --- | --- | --- | --- | --- |")
        least = peak(model, images, COSTS["one map"])
        for row, words in COSTS.items():
            ratio = np.median(np.array(taken[row][1:]) / np.array(taken["one map"][1:]))
            most = peak(model, images, words)
            space = f"{most / 2**20:.1f} MiB | {most / least:.2f}"
            print(f"| {row} | {np.median(taken[row][1:]):.3f} | {ratio:.2f} | {space} |", flush=True)


def peak(model: vitrail.VisionModel, images: Tensor, words: dict[str, Any]) -> int:
    """Bytes of the tensors that live at once beyond the weights."""
    with Allocations("cpu") as allocations:
        vitrail.explain(model, images, 3, **words)
    return allocations.peak


def progress(number: int, count: int) -> None:
    if (number + 1) % 10 == 0:
        print(f"{number + 1} of {count}", file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    one.__name__: one for one in (bestiary, photographs, deletion, cost)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--cells", type=int, default=2, help="cells on a side of a patch (bestiary)")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
