"""The recipe of the bestiary's models: a transformer from scratch on two CPU cores in less than 45 minutes.

    python -m training.bestiary FOLDER

Scenes are drawn once into a pool and seen many times in other colours and positions. Three things make few images
enough: dense labels for every patch, as in token labelling (Jiang et al. 2021), Muon with a mimetic start, and, where
the architecture allows it, short token sequences while the landscape is still ballast.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from training.optimise import initialise, optimisers
from training.run import Checkpoint, Progress, Restart, Seed, Threads, TrainingRun, reporting
from training.scenes import (
    CLASS_LABELS,
    MIX,
    PART_LABELS,
    Kinds,
    Pool,
    augmented,
    deleted,
    draw_pool,
    kept_tokens,
    load_pool,
    merged,
    patch_labels,
)
from vitrail.bestiary import model as bestiary_model
from vitrail.bestiary.dataset import LabelErrors
from vitrail.bestiary.model import SIZE, build_model, load_weights, save_weights
from vitrail.cli.console import show
from vitrail.cli.options import spelled
from vitrail.errors import OptionError

CELLS = 4  # rows and columns of cells of which one is deleted, as in IDSDS

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Recipe:
    """Every number of the training; the defaults made the weights of the shipped ViT."""

    scenes: int = 12000
    steps: int = 5000
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    keep: int = 64  # tokens of 144 while the landscape is ballast (ViT only)
    whole: float = 0.25  # the last share of the steps, with all tokens
    dense: float = 1.0  # weight of the dense losses
    parts: float = 1.0  # weight of the parts among them, next to that of the classes
    average: float = 0.998  # decay of the average of the weights
    deletion: float = 0.0  # share of the images that lack a random cell of 4 x 4
    kinds: Kinds = MIX  # of the scenes, over and over
    interval: int = 200  # steps between two checkpoints


def train(
    output: str | Path,
    *,
    architecture: str = "vit",
    recipe: Recipe = Recipe(),
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    label_errors: LabelErrors | None = None,
    merge: Sequence[tuple[str, str]] = (),
    start: str | Path | None = None,
    pool: str | Path | None = None,
    seed: int = 0,
    workers: int = 2,
    minutes: float = math.inf,
) -> Path | None:
    """Trains a bestiary model into the folder `output` and returns the path of its weights (safetensors, fp16).

    `architecture` is a name of `vitrail.bestiary.model.ARCHITECTURES`; one with random layers (dropout, stochastic
    depth) is trained, too, but an interrupted run then ends with other weights than an uninterrupted one. `start` are
    the weights of such a model to begin with (default: random ones). `merge` are pairs of species that the labels do
    not tell apart: such a model is a start for trainings that learn from their own labels alone which is which.

    The pool of scenes (`pool/`, or the folder `pool`, which trainings can share) and a checkpoint (`state.pt`, every
    `recipe.interval` steps) are kept, so that a run that was interrupted goes on where it was; with `resume=False` the
    checkpoint is ignored. The pool holds no label errors: scenes that `label_errors` change are drawn at each start.
    After `minutes` the run stops at a checkpoint and returns None. `workers` processes draw the pool; PyTorch's own
    number of threads is used for the rest. Raises `CheckpointError` for a checkpoint that is damaged or of another
    recipe, and `UnknownNameError` for an unknown architecture.

    >>> import tempfile
    >>> tiny = Recipe(scenes=20, steps=2, batch=4, warmup=1, interval=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train(folder, recipe=tiny, workers=1).name
    'weights.safetensors'
    """
    end = time.monotonic() + 60 * minutes
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    report = progress if progress is not None else lambda _: None
    question = {
        "architecture": architecture,
        "recipe": asdict(recipe),
        "seed": seed,
        "label_errors": asdict(label_errors) if label_errors else None,
        "merge": [list(pair) for pair in merge],
        "start": None if start is None else Path(start).name,
    }
    run = Run(architecture, recipe, seed, start)
    checkpoint = Checkpoint(folder / "state.pt", question)
    if resume and checkpoint.path.exists():
        run.restore(checkpoint.read())
    drawn_in = folder / "pool" if pool is None else Path(pool)
    drawing = {"seed": pool_seed(seed), "kinds": recipe.kinds}
    for drawn in draw_pool(drawn_in, recipe.scenes, workers=workers, **drawing):
        report(Progress("draw", drawn, recipe.scenes))
    scenes = merged(load_pool(drawn_in, recipe.scenes, label_errors=label_errors, **drawing), merge)
    if not run.complete(
        recipe.steps, lambda: run.advance(scenes), checkpoint, interval=recipe.interval, report=report, end=end
    ):
        return None
    weights = folder / "weights.safetensors"
    save_weights(run.average, weights, question)
    return weights


def pool_seed(seed: int) -> int:
    """Returns the seed of a training's scenes: the generators of pool and evaluation must not meet."""
    return seed + 1


class Run(TrainingRun):
    """A training of a model and its dense reader, with the random choices that it makes."""

    def __init__(self, architecture: str, recipe: Recipe, seed: int, start: str | Path | None = None) -> None:
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.model = build_model(architecture)
        if start is None:
            initialise(self.model, self.generator)
        else:
            self.model.load_state_dict(load_weights(start)[0].state_dict())
        with torch.no_grad():
            _, tokens = tokens_forward(self.model, torch.zeros(1, 3, SIZE, SIZE), None)
        self.patch = SIZE // math.isqrt(tokens.shape[1])  # pixels that a token of the last layer stands for
        # The dense reader: which part, which class. It starts at zero and leaves with the training.
        self.reader = nn.Linear(tokens.shape[2], PART_LABELS + CLASS_LABELS)
        nn.init.zeros_(self.reader.weight)
        nn.init.zeros_(self.reader.bias)
        self.order = torch.empty(0, dtype=torch.long)
        super().__init__(optimisers(self.model, self.reader, recipe.rate, recipe.weight_decay), recipe.average)

    def weights(self) -> dict[str, Tensor]:
        """Returns the model's weights, without the reader's."""
        return self.model.state_dict()

    def advance(self, pool: Pool) -> float:
        """Makes one step and returns the loss of the class token."""
        recipe = self.recipe
        images, owners, targets, creatures = self._batch(pool)
        images, owners = augmented(images, owners, self.generator)
        if recipe.deletion:
            images, owners = deleted(images, owners, recipe.deletion, CELLS, self.generator)
        parts, classes = patch_labels(owners, creatures, self.patch)
        kept = None
        if isinstance(self.model, VisionTransformer) and self.step < recipe.steps * (1 - recipe.whole):
            kept = kept_tokens(parts[..., 0], recipe.keep, self.generator)
            parts, classes = (x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])) for x in (parts, classes))
        logits, tokens = tokens_forward(self.model, images, kept)
        part_logits, class_logits = self.reader(tokens).split([PART_LABELS, CLASS_LABELS], dim=2)
        loss = functional.cross_entropy(logits, targets)
        dense = functional.cross_entropy(class_logits.flatten(0, 1), classes.flatten(0, 1))
        if recipe.parts:
            dense = dense + recipe.parts * functional.cross_entropy(part_logits.flatten(0, 1), parts.flatten(0, 1))
        parameters = [*self.model.parameters(), *self.reader.parameters()]
        self.update(loss + recipe.dense * dense, parameters, recipe.rate * self._schedule())
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Returns the content of a checkpoint."""
        more = {"order": self.order, "generator": self.generator.get_state(), "reader": self.reader.state_dict()}
        return super().state() | more

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up the content of a checkpoint."""
        super().restore(content)
        self.order = content["order"]
        self.generator.set_state(content["generator"])
        self.reader.load_state_dict(content["reader"])

    def _batch(self, pool: Pool) -> list[Tensor]:
        if len(self.order) < self.recipe.batch:
            self.order = torch.cat([self.order, torch.randperm(len(pool), generator=self.generator)])
        chosen, self.order = self.order[: self.recipe.batch].numpy(), self.order[self.recipe.batch :]
        return [torch.from_numpy(field[chosen]) for field in (pool.images, pool.owners, pool.targets, pool.creatures)]

    def _schedule(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.steps)))


def tokens_forward(
    model: nn.Module, images: Float[Tensor, "batch 3 size size"], kept: Int[Tensor, "batch keep"] | None
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch tokens dim"]]:
    """Returns the logits and the tokens of the last layer, row by row; of a ViT from the kept patches only, if any."""
    if not isinstance(model, VisionTransformer):
        features = model.forward_features(images)  # type: ignore[operator]
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        tokens = features.flatten(1, 2) if channels_last else features.flatten(2).mT
        return model.forward_head(features), tokens  # type: ignore[operator]
    position, start = model.get_parameter("pos_embed"), model.get_parameter("cls_token")
    tokens = model.patch_embed(images) + position[:, 1:]
    if kept is not None:
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    first = (start + position[:, :1]).expand(len(tokens), -1, -1)
    tokens = model.norm(model.blocks(torch.cat([first, tokens], dim=1)))
    return model.head(tokens[:, 0]), tokens[:, 1:]


# A model whose labels alone tell it what it sees, for trainings that are repeated with other labels.
SMALL = Recipe(scenes=8000, steps=1600, warmup=100, keep=40, whole=0.2, parts=0.0, kinds=("single",), average=0.99)
# The shipped ViT made at home with single deletions, as IDSDS makes ImageNet's models.
DELETION = Recipe(rate=5e-4, whole=1.0, deletion=0.5)
SHIPPED = Path(bestiary_model.__file__).parent / "weights" / "bestiary.safetensors"


@app.command(cls=spelled(python={"resume": "--restart"}))
def command(
    output: Annotated[Path, typer.Argument(help="Folder for the drawn scenes, the checkpoints and the weights.")],
    architecture: Annotated[
        str, typer.Option("--architecture", help="Name in vitrail.bestiary.model.ARCHITECTURES.")
    ] = "vit",
    label_errors: Annotated[
        bool, typer.Option("--label-errors", help="Plant label errors, as in bestiary/label-errors.")
    ] = False,
    error_pair: Annotated[
        tuple[str, str],
        typer.Option("--error-pair", metavar="LABEL SHOWS", help="The wrong label, and the sibling that is shown."),
    ] = (LabelErrors.label, LabelErrors.shows),
    error_share: Annotated[
        float, typer.Option("--error-share", help="Share of the images of that label that show the sibling.")
    ] = LabelErrors.share,
    error_hidden: Annotated[
        float, typer.Option("--error-hidden", help="Share of the sibling's own images without its telling part.")
    ] = LabelErrors.hidden,
    deletion: Annotated[
        bool,
        typer.Option("--deletion", help="Go on from the shipped ViT on images that lack a cell, as bestiary/deletion."),
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="Singles only, no labels of parts, and few steps: minutes on one core.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of training (default: the recipe's).")
    ] = None,
    scenes: Annotated[
        int | None, typer.Option("--scenes", min=1, help="Number of scenes (default: the recipe's).")
    ] = None,
    seed: Seed = 0,
    threads: Threads = 2,
    restart: Restart = False,
) -> None:
    """Train a model of the bestiary from scratch; the same command resumes an interrupted training."""
    recipe = DELETION if deletion else SMALL if small else Recipe()
    recipe = replace(recipe, steps=steps or recipe.steps, scenes=scenes or recipe.scenes)
    with reporting(output, threads) as progress:
        errors = LabelErrors(*error_pair, share=error_share, hidden=error_hidden)
        if errors != LabelErrors() and not label_errors:
            raise OptionError(
                "--error-pair, --error-share and --error-hidden say which errors --label-errors plants: add it"
            )
        if deletion and small:
            raise OptionError("--deletion and --small are two recipes: choose one")
        weights = train(
            output,
            architecture=architecture,
            recipe=recipe,
            resume=not restart,
            progress=progress,
            label_errors=errors if label_errors else None,
            start=SHIPPED if deletion else None,
            seed=seed,
            workers=threads,
        )
    show(weights)


if __name__ == "__main__":
    app()
