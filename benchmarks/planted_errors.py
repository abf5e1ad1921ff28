"""Planted label errors: small models of the bestiary that learnt them, to see whether an audit finds them.

    python -m benchmarks.planted_errors train FOLDER

`train` makes ten models, resumable, on one core. In a set with a share x of errors of the pair (A, B), a share x of the
training singles labelled A shows the sibling B; all other images are those of the clean set, and a larger share keeps
the errors of a smaller one. The images are singles only and have no labels of parts, and the labels of their patches
are as wrong as that of the image, so that nothing tells a model the truth. Each model is trained on from one start,
which was trained from scratch on labels that do not tell the two species of either pair apart.
"""

import json
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from PIL import Image
from torch import Tensor, nn

from training.bestiary import SMALL, Recipe, pool_seed, train
from training.run import Progress
from training.scenes import load_pool
from vitrail.bestiary import CLASS_NAMES, Bestiary, LabelErrors
from vitrail.bestiary.model import SIZE, load_weights, predict
from vitrail.datasets.base import Sample
from vitrail.files import atomic_write
from vitrail.threads import thread_count

PAIRS = (("borrin", "tavel"), ("lindle", "vesk"))  # (label, what it shows)
SHARES = (0.70, 0.10, 0.05, 0.02)
START = "start"
# From the start on, with the labels of the set.
OWN = replace(SMALL, steps=260, rate=1.5e-3, warmup=20, whole=1.0)
HELD_OUT, HELD_OUT_SEED = 1000, 2**20

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


@app.callback()
def planted_errors() -> None:
    """Models that learnt planted label errors."""


@app.command("train")
def train_all(folder: Folder) -> None:
    """Train the start and the ten models; the same command resumes an interrupted training."""
    with thread_count(1):
        start = trained(folder, START, 0, SMALL, merge=PAIRS)
        for one in SETS:
            trained(folder, one.name, one.seed, OWN, label_errors=one.errors, start=start)


if __name__ == "__main__":
    app()
