"""Planted label errors: small models of the bestiary that learnt them, to see whether an audit finds them.

    python -m benchmarks.planted_errors train FOLDER
    python -m benchmarks.planted_errors score FOLDER

`train` makes ten models, resumable, on one core. In a set with a share x of errors of the pair (A, B), a share x of the
training singles labelled A shows the sibling B; all other images are those of the clean set, and a larger share keeps
the errors of a smaller one. The images are singles only and have no labels of parts, and the labels of their patches
are as wrong as that of the image, so that nothing tells a model the truth. Each model is trained on from one start,
which was trained from scratch on labels that do not tell the two species of either pair apart.

`score` audits training singles of each model, with the labels it was trained on, over all sibling pairs:

- pairs: the rank of the contaminated one among all ordered pairs (shown, labelled), and the AUROC over the pairs of all
  models, for each number that an audit gives of a pair. The same two classes the other way round are left out. Since
  the start does not tell these pairs apart, they are compared with themselves in the other models, too.
- images: average precision and AUROC of the wrong labels, for each score of an image. Two know of the pairs: of the
  images that the model calls otherwise, those come first whose given and suggested class score highest as a pair.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

import vitrail
from training.bestiary import SMALL, Recipe, pool_seed, train
from training.run import Progress
from training.scenes import load_pool
from vitrail.audit import Audit, ClassPair
from vitrail.bestiary import CLASS_NAMES, Bestiary, LabelErrors
from vitrail.bestiary.model import SIZE, load_weights, predict
from vitrail.bestiary.species import siblings
from vitrail.datasets.base import Sample
from vitrail.files import atomic_write
from vitrail.metrics.aggregation import bootstrap
from vitrail.threads import thread_count

PAIRS = (("borrin", "tavel"), ("lindle", "vesk"))  # (label, what it shows)
SHARES = (0.70, 0.10, 0.05, 0.02)
START = "start"
# From the start on, with the labels of the set.
OWN = replace(SMALL, steps=260, rate=1.5e-3, warmup=20, whole=1.0)
HELD_OUT, HELD_OUT_SEED = 1000, 2**20

Values = Float[np.ndarray, " some"]
Truth = Bool[np.ndarray, " some"]

app = typer.Typer(add_completion=False)
Folder = Annotated[Path, typer.Argument(help="Folder of the models.")]


class Planted(NamedTuple):
    """A model's training set: the errors in it, and the seed of its scenes and of the training."""

    errors: LabelErrors | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Returns the name of the model's folder."""
        if self.errors is None:
            return f"clean-{self.seed}"
        return f"{self.errors.label}-{self.errors.shows}-{round(100 * self.errors.share):02d}"


SETS = (
    Planted(),
    *(Planted(LabelErrors(*pair, share=share, hidden=0.0)) for share in SHARES for pair in PAIRS),
    Planted(seed=1),
)


class TrainingSingles:
    """Training singles of a model as data to audit: the labels that it was trained on, some of them wrong.

    Item k is scene k of the training, as `load_pool` gives it; `truth[k]` is the class that it really shows. The first
    `count` scenes must have been drawn into the folder `pool`.
    """

    annotations = frozenset({"label"})

    def __init__(self, pool: str | Path, planted: Planted, count: int = SMALL.scenes) -> None:
        seed, errors = pool_seed(planted.seed), planted.errors
        scenes = Bestiary("single", SIZE, count, seed, label_errors=errors)
        self.planted = planted
        self.images = load_pool(Path(pool), count, seed=seed, kinds=SMALL.kinds, label_errors=errors).images
        self.labels = [CLASS_NAMES.index(scenes.scene(k).labels[0]) for k in range(count)]
        self.truth = [CLASS_NAMES.index(str(scenes.scene(k).creatures[0].species)) for k in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def source(self, index: int) -> str:
        """Returns the name of an image."""
        return f"training-{index:06d}"

    def sample(self, index: int) -> Sample:
        """Returns an image with the label that it was given."""
        return Sample(picture=Image.fromarray(self.images[index].transpose(1, 2, 0)), label=self.labels[index])

    def describe(self) -> dict[str, Any]:
        """Returns what the data were drawn from."""
        errors = self.planted.errors
        return {"errors": asdict(errors) if errors else None, "seed": self.planted.seed, "count": len(self)}


# -- training ----------------------------------------------------------------------------------------------------------


class Log:
    """Keeps what a training takes in a file next to its weights: processor minutes over all its starts, and losses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"minutes": 0.0, "losses": []}
        self.then = time.process_time()

    def __call__(self, now: Progress) -> None:
        """Notes a report of the training."""
        self.kept["minutes"] += (time.process_time() - self.then) / 60
        self.then = time.process_time()
        if now.stage == "train":
            self.kept["losses"].append([now.done, round(now.loss, 4)])
            print(f"  step {now.done} of {now.total}, loss {now.loss:.3f}", flush=True)
        self.write()

    def write(self) -> None:
        """Writes the file at once."""
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.kept, indent=1).encode())


def trained(folder: Path, name: str, seed: int, recipe: Recipe, **options: Any) -> Path:
    """Trains a model, or resumes its training, and returns its weights; `record.json` tells what it took."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    log = Log(place / "record.json")
    weights = place / "weights.safetensors"
    if "accuracy" not in log.kept:
        print(name, flush=True)
        train(place, recipe=recipe, pool=folder / "pool", seed=seed, workers=1, progress=log, **options)
        log.kept |= accuracies(load_weights(weights)[0], *held_out_singles())
        log.write()
    losses = log.kept["losses"]
    recall = ", ".join(f"{log.kept['recall'][one]:.0%} of {one}" for pair in PAIRS for one in pair)
    print(
        f"{name}: {log.kept['accuracy']:.1%} of {HELD_OUT} held-out singles right, {recall}; "
        f"{log.kept['minutes']:.1f} min on one core, last loss {losses[-1][1] if losses else float('nan'):.3f}",
        flush=True,
    )
    return weights


@cache
def held_out_singles() -> tuple[Tensor, Tensor]:
    """Returns images of held-out clean singles, and their classes."""
    data = Bestiary("single", SIZE, HELD_OUT, HELD_OUT_SEED)
    items = [data[index] for index in range(HELD_OUT)]
    return torch.stack([item["image"] for item in items]), torch.stack([item["label"] for item in items])


def accuracies(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Returns the share of images whose class is on top, over all of them and by class."""
    right = torch.cat([predict(model, some).argmax(dim=1) for some in images.split(100)]) == labels
    by_class = {name: float(right[labels == number].float().mean()) for number, name in enumerate(CLASS_NAMES)}
    return {"accuracy": float(right.float().mean()), "recall": by_class}


@app.command("train")
def train_all(folder: Folder) -> None:
    """Train the start and the ten models; the same command resumes an interrupted training."""
    with thread_count(1):
        start = trained(folder, START, 0, SMALL, merge=PAIRS)
        for one in SETS:
            trained(folder, one.name, one.seed, OWN, label_errors=one.errors, start=start)


# -- scores ------------------------------------------------------------------------------------------------------------


def placements(values: Values, positive: Truth) -> Values:
    """Returns for each positive the share of negatives below it, ties by half: their mean is the AUROC.

    >>> placements(np.array([3.0, 1.0, 2.0]), np.array([True, False, True])).tolist()
    [1.0, 1.0]
    """
    below = np.sort(values[~positive])
    left, right = (np.searchsorted(below, values[positive], side) for side in ("left", "right"))
    return (left + right) / (2 * max(len(below), 1))


def precisions(values: Values, positive: Truth) -> Values:
    """Returns for each positive the share of positives among all that are as high: their mean is the average precision.

    >>> precisions(np.array([3.0, 1.0, 2.0]), np.array([False, False, True])).tolist()
    [0.5]
    """
    everything, own = np.sort(values), np.sort(values[positive])
    ahead = [len(some) - np.searchsorted(some, values[positive], "left") for some in (own, everything)]
    return ahead[0] / ahead[1]


# High where a pair, or an image, is suspicious.
PAIR_SCORES: dict[str, Callable[[ClassPair], float]] = {
    "share of typical parts for the other": lambda pair: pair.share,
    "balance of typical parts": lambda pair: -pair.balance,
    "logit margin": lambda pair: -pair.margin,
    "joint of confident learning": lambda pair: pair.joint,
}
IMAGE_SCORES: dict[str, Callable[[Audit], Values]] = {
    "margin": lambda found: np.array([-one.margin for one in found.ranked]),
    "self-confidence": lambda found: np.array([-one.self_confidence for one in found.ranked]),
    "confident learning, then margin": lambda found: np.array([2.0 * one.issue - one.margin for one in found.ranked]),
    "joint of its classes, then margin": lambda found: by_pair(found, lambda pair: pair.joint),
    "balance of its classes, then margin": lambda found: by_pair(found, lambda pair: -pair.balance),
}


def by_pair(found: Audit, score: Callable[[ClassPair], float]) -> Values:
    """Returns ranks of the images: those called otherwise first, by the score of given and suggested class."""
    scores: dict[tuple[int | None, int | None], float]
    scores = {(pair.shown, pair.other): score(pair) for pair in found.pairs}
    lowest = min(scores.values()) - 1
    own = np.array([scores.get((one.suggested, one.given), lowest) for one in found.ranked])
    margin = np.array([one.margin for one in found.ranked])
    order = np.lexsort((-margin, own, margin < 0))
    return np.argsort(order).astype(np.float64)


@dataclass(frozen=True)
class Scores:
    """What an audit says of a model's training set, next to the truth."""

    planted: Planted
    names: list[tuple[str, str]]  # the sibling pairs (shown, other), without the contaminated one the other way round
    pairs: dict[str, Values]
    mixed: Truth  # which of them is contaminated
    images: dict[str, Values]
    wrong: Truth  # which images are labelled wrongly
    issues: Truth  # which labels confident learning finds wrong
    least: float  # the least p-value of a pair, adjusted for all


def audited(folder: Path, planted: Planted, count: int, pair_images: int, folds: int | None) -> Scores:
    """Audits a model's training singles over all sibling pairs; resumes."""
    data = TrainingSingles(folder / "pool", planted, count)
    asked = [(shown, other) for shown in CLASS_NAMES for other in siblings(shown)]
    found = vitrail.audit(
        vitrail.load("bestiary", checkpoint=folder / planted.name / "weights.safetensors"),
        data,
        output=folder / planted.name / f"audit-{count}",
        suspects=0,
        pairs=asked,
        pair_images=pair_images,
        folds=folds,
        batch_size=32,
    )
    errors = planted.errors
    mixed = (errors.shows, errors.label) if errors else None
    named = {(CLASS_NAMES[pair.shown], CLASS_NAMES[pair.other]): pair for pair in found.pairs}
    names = [name for name in asked if name in named and name[::-1] != mixed]
    kept = [named[name] for name in names]
    return Scores(
        planted,
        names,
        {name: np.array([score(pair) for pair in kept]) for name, score in PAIR_SCORES.items()},
        np.array([name == mixed for name in names]),
        {name: score(found) for name, score in IMAGE_SCORES.items()},
        np.array([data.truth[one.image] != data.labels[one.image] for one in found.ranked]),
        np.array([one.issue for one in found.ranked]),
        min(pair.adjusted for pair in kept),
    )


def pair_table(scores: Iterable[Scores]) -> str:
    """Returns ranks and the AUROC of the contaminated pairs by each score.

    In a clean model they are the ranks of the two pairs that are contaminated elsewhere: the start did not tell these
    apart, so that they may be confusable without any error. For the same reason the second AUROC is among the values
    of the very same pair in the models where it is clean.
    """
    scores = list(scores)
    head = ["pair score", *(one.planted.name for one in scores), "AUROC", "AUROC, same pair"]
    lines = [_row(*head), _row(*["---"] * len(head))]
    for name in PAIR_SCORES:
        everything = np.concatenate([one.pairs[name] for one in scores])
        areas = [placements(everything, np.concatenate([one.mixed for one in scores]))]
        same = []
        for label, shows in PAIRS:
            pair = (shows, label)
            at = [(one, one.names.index(pair)) for one in scores if pair in one.names]
            own = np.array([one.pairs[name][k] for one, k in at]), np.array([one.mixed[k] for one, k in at])
            same.append(placements(*own) if not own[1].all() else np.zeros(0))
        areas.append(np.concatenate(same))
        lines.append(_row(name, *(_ranks(one, name) for one in scores), *map(bootstrap, areas)))
    return "\n".join(lines)


def _ranks(scores: Scores, name: str) -> str:
    """The middle rank of the pair that is contaminated, of how many; in a clean model those of both."""
    values = scores.pairs[name]
    asked = scores.mixed if scores.mixed.any() else np.array([pair[::-1] in PAIRS for pair in scores.names])
    ranks = [(values > value).sum() + ((values == value).sum() + 1) / 2 for value in values[asked]]
    return f"{', '.join(f'{rank:g}' for rank in ranks)} of {len(values)}"


def image_table(scores: Iterable[Scores], measure: Callable[[Values, Truth], Values]) -> str:
    """Returns for each training set the mean of `precisions` or `placements` of the wrong labels, by each score."""
    lines = [
        _row("set", "labels wrong", "wrong among confident learning's issues", *IMAGE_SCORES),
        _row(*["---"] * (3 + len(IMAGE_SCORES))),
    ]
    for one in scores:
        counts = f"{one.wrong.sum()} of {len(one.wrong)}", f"{(one.wrong & one.issues).sum()} of {one.issues.sum()}"
        found = [bootstrap(measure(one.images[name], one.wrong)) for name in IMAGE_SCORES]
        lines.append(_row(one.planted.name, *counts, *found))
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


@app.command("score")
def score_all(
    folder: Folder,
    count: Annotated[int, typer.Option("--count", help="Training singles of each model, a multiple of 500.")] = 4000,
    pair_images: Annotated[int, typer.Option("--pair-images", help="Images that a pair is tested on.")] = 24,
) -> None:
    """Audit the training singles of each model that is trained, and compare with the truth; mean [95 % interval]."""
    ready = [one for one in SETS if (folder / one.name / "weights.safetensors").exists()]
    with thread_count(1):
        for folds in (None, 5):
            scores = [audited(folder, one, count, pair_images, folds) for one in ready]
            print(f"\n## {'The models themselves' if folds is None else f'Out of sample, {folds} folds'}\n")
            print(f"{pair_table(scores)}\n")
            if folds is None:
                print(
                    *(f"{one.planted.name}: least adjusted p {one.least:.2g}" for one in scores), sep="\n", end="\n\n"
                )
            for name, measure in (("Average precision", precisions), ("AUROC", placements)):
                print(f"{name} of the wrong labels\n\n{image_table(scores, measure)}\n", flush=True)


if __name__ == "__main__":
    app()
