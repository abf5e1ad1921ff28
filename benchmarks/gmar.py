"""GMAR's claim about heads, and what the method costs: spread of its weights, and heads pruned in their order.

    python -m benchmarks.gmar --part heads --checkpoint w.safetensors --images folder --count 150
    python -m benchmarks.gmar --part heads --model bestiary --count 150
    python -m benchmarks.gmar --part cost

GMAR (Jo, Jang, Park, ICIP 2025) weighs the heads of a layer by w_h = ‖∇A_h‖_p / Σ_h ‖∇A_h‖_p, the gradient being that
of the predicted class's logit. Heads: the images of a folder in its order, or single creatures of the bestiary.

- Spread of the weights within a layer: the largest and the smallest (1/H if all were equal), their ratio, and the
  number of heads that count, exp of the entropy.
- Each head pruned by itself (its output A_h V_h set to zero): the drop of the logit, and Spearman's correlation over
  the heads of a layer between weight and the size of that drop.
- One head, or all but one, pruned in every layer at once: the lowest of each image by its own weights, the lowest by
  the weights' mean over the other images, the highest, and random ones (`--draws` times, their mean); drop of the
  logit, and whether the predicted class remains. Behind each figure is its paired difference to random heads.

The same for |Σ A_h ∇A_h|, after Michel et al. (2019), as another order from the same backward pass.

Cost: seconds of processor time, and the ratio to `rollout` and to one forward and one backward pass in the same round.
Brackets are 95 % bootstrap intervals over images.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import vitrail
from vitrail.attention.calls import AttentionCall
from vitrail.attention.tap import Tap, eager
from vitrail.attention.visitors import DenseAttention
from vitrail.benchmark.measure import describe_machine
from vitrail.bestiary import render, sample_scene
from vitrail.bestiary.model import normalised
from vitrail.inputs import prepare
from vitrail.metrics.aggregation import bootstrap
from vitrail.metrics.maps import rank_correlation

from .methods import plain_pass, seconds

ORDERS = ("GMAR, L1", "GMAR, L2", "Michel et al.")
BATCH = 16
Weights = Float[Tensor, "images layers heads"]
Figures = dict[str, dict[str, list[float]]]  # by row, by column: one value per image


class PrunedHeads:
    """Attention in which the heads that are not in `kept` put out nothing; layer l is `kept[:, l]`."""

    def __init__(self, kept: Bool[Tensor, "images layers heads"]) -> None:
        self.kept = kept
        self.layers = 0

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        """Computes attention, and sets what the pruned heads put out to zero."""
        return call.output() * self._next()

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        """Computes attention's probabilities, with those of the pruned heads at zero."""
        return torch.softmax(scores, dim=-1) * self._next()

    def _next(self) -> Bool[Tensor, "images heads 1 1"]:
        layer, self.layers = self.layers, self.layers + 1
        return self.kept[:, layer, :, None, None]


def head_weights(model: vitrail.VisionModel, images: Tensor) -> tuple[Tensor, dict[str, Weights]]:
    """Returns the logits, and by order the weight of each head for the predicted class, summing to 1 in a layer."""
    with torch.no_grad():
        model.logits(images)  # the first call of all also works out the kind of output, which no visitor is to see
    visitor = DenseAttention(0, held=False)
    with torch.enable_grad(), eager(), Tap(visitor, len(images)):
        logits = model.logits(images)
    maps = [visitor.maps[layer] for layer in sorted(visitor.maps)]
    slopes = torch.autograd.grad(logits.amax(dim=1).sum(), maps)
    norms = {
        "GMAR, L1": torch.stack([slope.abs().sum(dim=(-1, -2)) for slope in slopes], dim=1),
        "GMAR, L2": torch.stack([slope.square().sum(dim=(-1, -2)).sqrt() for slope in slopes], dim=1),
        "Michel et al.": torch.stack(
            [(a * s).sum(dim=(-1, -2)).abs() for a, s in zip(maps, slopes, strict=True)], dim=1
        ),
    }
    return logits.detach(), {name: (n / n.sum(dim=-1, keepdim=True)).detach() for name, n in norms.items()}


@torch.no_grad()
def pruned(model: vitrail.VisionModel, images: Tensor, kept: Bool[Tensor, "images layers heads"]) -> Tensor:
    """Returns the logits with the heads that are not `kept` pruned."""
    with eager(), Tap(PrunedHeads(kept), len(images)):
        return model.logits(images)


def keep_all_but(
    weights: Float[Tensor, "*shape heads"], count: int, *, highest: bool = False
) -> Bool[Tensor, "*shape heads"]:
    """Returns which heads remain when the `count` lowest (or highest) of each layer are pruned."""
    order = weights.argsort(dim=-1, descending=highest, stable=True)
    return torch.ones_like(weights, dtype=torch.bool).scatter(-1, order[..., :count], False)


def effective(weights: Float[Tensor, "*shape heads"]) -> Float[Tensor, "*shape"]:
    """Returns how many heads count: exp of the entropy, from 1 to the number of heads."""
    return torch.special.entr(weights).sum(dim=-1).exp()


def others_mean(weights: Weights) -> Weights:
    """Returns for each image the mean of the weights of all the others."""
    return (weights.sum(dim=0, keepdim=True) - weights) / (len(weights) - 1)


def batches(model: vitrail.VisionModel, folder: Path | None, count: int) -> Iterator[Tensor]:
    """Yields batches of a folder's images in the order of their names, or of single creatures."""
    files: Sequence[Path] = [] if folder is None else sorted(folder.glob("*.JPEG"))[:count]
    for start in range(0, count if folder is None else len(files), BATCH):
        if folder is None:
            scenes = [sample_scene("single", seed=2**21 + k) for k in range(start, min(start + BATCH, count))]
            pixels = torch.stack([torch.from_numpy(render(one).image) for one in scenes])
            yield normalised(pixels.permute(0, 3, 1, 2) / 255)
        else:
            yield prepare(model, list(files[start : start + BATCH])).batch


def effects_of(
    model: vitrail.VisionModel, images: Tensor, target: Int[Tensor, " images"], before: Tensor, heads: tuple[int, int]
) -> Float[Tensor, "images layers heads"]:
    """Returns the drop of the target's logit when each head is pruned by itself."""
    found = torch.empty(len(images), *heads)
    for layer in range(heads[0]):
        for head in range(heads[1]):
            kept = torch.ones(len(images), *heads, dtype=torch.bool)
            kept[:, layer, head] = False
            found[:, layer, head] = before - _at(pruned(model, images, kept), target)
    return found


def _at(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


def measure_heads(model: vitrail.VisionModel, folder: Path | None, count: int, draws: int) -> None:
    """Prints spread of the weights, single heads' effects and what pruning in each order does."""
    known = [(images, *head_weights(model, images)) for images in batches(model, folder, count)]
    weights = {name: torch.cat([each[name] for _, _, each in known]) for name in ORDERS}
    _, layers, heads = weights[ORDERS[0]].shape
    number = len(weights[ORDERS[0]])
    print(f"\n{number} images, {layers} layers of {heads} heads\n")
    spread: Figures = defaultdict(dict)
    for name, of_heads in weights.items():
        low, high = of_heads.amin(dim=-1), of_heads.amax(dim=-1)
        columns = {"largest": high, "smallest": low, "ratio, median layer": (high / low).median(dim=-1).values[:, None]}
        columns["heads that count"] = effective(of_heads)
        spread[name] = {column: values.mean(dim=-1).tolist() for column, values in columns.items()}
    show(f"Weights within a layer (1/{heads} = {1 / heads:.3f} if equal)", spread)

    single: Figures = defaultdict(lambda: defaultdict(list))
    together: Figures = defaultdict(lambda: defaultdict(list))
    generator = torch.Generator().manual_seed(0)
    start = 0
    for images, logits, own in known:
        target, before, rows = logits.argmax(dim=1), logits.amax(dim=1), slice(start, start + len(images))
        start += len(images)
        effects = effects_of(model, images, target, before, (layers, heads))
        single["any head (random)"]["drop"] += effects.mean(dim=(-1, -2)).tolist()
        single["any head (random)"]["size of the drop"] += effects.abs().mean(dim=(-1, -2)).tolist()
        for name in ORDERS:
            for which, of_heads in (("lowest", own[name].argmin(-1)), ("highest", own[name].argmax(-1))):
                drop = effects.gather(-1, of_heads[..., None])[..., 0]
                single[f"{which}, {name}"]["drop"] += drop.mean(dim=-1).tolist()
                single[f"{which}, {name}"]["size of the drop"] += drop.abs().mean(dim=-1).tolist()
            single[f"weight and size of the drop, {name}"]["rank correlation"] += [
                float(np.nanmean([rank_correlation(w, e) for w, e in zip(one, of, strict=True)]))
                for one, of in zip(own[name], effects.abs(), strict=True)
            ]
        for some in sorted({1, heads - 1}):
            kept: dict[str, list[Tensor]] = {
                "random": [keep_all_but(torch.rand(effects.shape, generator=generator), some) for _ in range(draws)]
            }
            for name in ORDERS:
                kept[f"lowest, {name}"] = [keep_all_but(own[name], some)]
                kept[f"highest, {name}"] = [keep_all_but(own[name], some, highest=True)]
                kept[f"lowest on average, {name}"] = [keep_all_but(others_mean(weights[name])[rows], some)]
            for row, masks in kept.items():
                after = [pruned(model, images, mask) for mask in masks]
                drops = torch.stack([before - _at(one, target) for one in after]).mean(dim=0)
                stays = torch.stack([(one.argmax(dim=1) == target).float() for one in after]).mean(dim=0)
                together[row][f"drop, {some} of {heads}"] += drops.tolist()
                together[row][f"class remains, {some} of {heads}"] += stays.tolist()
    show("One head pruned, mean over layers: drop of the logit", single, "any head (random)")
    show(f"Heads pruned in every layer at once; random: mean of {draws} draws", together, "random")


def show(title: str, figures: Figures, base: str = "") -> None:
    """Prints a table: means with intervals, and after them the paired difference to the row `base`."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    print(f"\n{title}\n\n| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, row in figures.items():
        cells = []
        for column in columns:
            if column not in row:
                cells.append("")
                continue
            cell = _interval(row[column])
            if base and name != base and column in figures[base]:
                cell += f"; {_interval([a - b for a, b in zip(row[column], figures[base][column], strict=True)], '+')}"
            cells.append(cell)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _interval(values: Sequence[float], sign: str = "") -> str:
    found = bootstrap(values)
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def measure_cost(model: vitrail.VisionModel, rounds: int) -> None:
    """Prints what GMAR takes beside rollout, one image, each round timing every row once."""
    assert model.preprocess is not None
    image = torch.randn(1, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0))
    target = int(model.logits(image).argmax())

    def ask(name: str) -> Callable[[], object]:
        return lambda: vitrail.explain(model, image, target, method=name)

    work = {name: ask(name) for name in ("rollout", "gmar_l1", "gmar_l2")}
    work["one forward, one backward pass"] = lambda: plain_pass(model.module, image, target)
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):  # the first is warm-up
        for name, call in work.items():
            took = seconds(call)
            if number:
                times[name].append(took)
    print(f"\n{model.name}, one image, {rounds} rounds\n")
    print("| | seconds, median | × rollout | × the passes |\n|---|---|---|---|")
    for name, found in times.items():
        ratios = [
            _interval([one / other for one, other in zip(found, times[base], strict=True)])
            for base in ("rollout", "one forward, one backward pass")
        ]
        print(f"| {name} | {statistics.median(found):.3f} | " + " | ".join(ratios) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("heads", "cost"), required=True)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--checkpoint", type=Path, help="for the cost, random weights do without one")
    parser.add_argument("--images", type=Path, help="folder of photographs; without it, creatures of the bestiary")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(describe_machine())
    if options.model.startswith("bestiary"):
        model = vitrail.load(options.model)
    elif options.checkpoint is None:
        model = vitrail.load(options.model, pretrained=False)
    else:
        model = vitrail.load(options.model, checkpoint=options.checkpoint)
    if options.part == "heads":
        measure_heads(model, options.images, options.count, options.draws)
    else:
        measure_cost(model, options.rounds)


if __name__ == "__main__":
    main()
