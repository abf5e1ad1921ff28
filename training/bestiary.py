"""The recipe of the bestiary's models: a transformer from scratch on two CPU cores in less than 45 minutes.

    python -m training.bestiary FOLDER

Scenes are drawn once into a pool and seen many times in other colours and positions. Three things make few images
enough: dense labels for every patch, as in token labelling (Jiang et al. 2021), Muon with a mimetic start, and, where
the architecture allows it, short token sequences while the landscape is still ballast.
"""

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from training.optimise import initialise, optimisers
from training.scenes import (
    CLASS_LABELS,
    PART_LABELS,
    Pool,
    augmented,
    draw_pool,
    kept_tokens,
    load_pool,
    patch_labels,
)
from vitrail.bestiary.dataset import LabelErrors
from vitrail.bestiary.model import SIZE, build_model, save_weights
from vitrail.cli.console import show, stages, stop
from vitrail.cli.options import spelled
from vitrail.errors import CheckpointError, VitrailError
from vitrail.files import atomic_write
from vitrail.threads import thread_count

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
    average: float = 0.998  # decay of the average of the weights
    interval: int = 200  # steps between two checkpoints


class Progress(NamedTuple):
    """How far training is: scenes drawn or steps made, of how many, and the mean loss since the last report."""

    stage: Literal["draw", "train"]
    done: int
    total: int
    loss: float = math.nan


def train(
    output: str | Path,
    *,
    architecture: str = "vit",
    recipe: Recipe = Recipe(),
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    label_errors: LabelErrors | None = None,
    seed: int = 0,
    workers: int = 2,
    minutes: float = math.inf,
) -> Path | None:
    """Trains a bestiary model into the folder `output` and returns the path of its weights (safetensors, fp16).

    `architecture` is a name of `vitrail.bestiary.model.ARCHITECTURES`; one with random layers (dropout, stochastic
    depth) is trained, too, but an interrupted run then ends with other weights than an uninterrupted one.

    The pool of scenes (`pool/`) and a checkpoint (`state.pt`, every `recipe.interval` steps) are kept there, so that
    a run that was interrupted goes on where it was; with `resume=False` the checkpoint is ignored. After `minutes`
    the run stops at a checkpoint and returns None. `workers` processes draw the pool; PyTorch's own number of threads
    is used for the rest. Raises `CheckpointError` for a checkpoint that is damaged or of another recipe, and
    `UnknownNameError` for an unknown architecture.

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
    }
    run = Run(architecture, recipe, seed)
    state = folder / "state.pt"
    if resume and state.exists():
        run.load(state, question)
    pool_seed = seed + 1  # the generators of pool and evaluation must not meet
    name = "pool" if label_errors is None else "pool-label-errors"
    for drawn in draw_pool(folder / name, recipe.scenes, seed=pool_seed, label_errors=label_errors, workers=workers):
        report(Progress("draw", drawn, recipe.scenes))
    pool = load_pool(folder / name, recipe.scenes)
    total = 0.0
    while run.step < recipe.steps:
        total += run.advance(pool)
        if run.step % recipe.interval == 0 or run.step == recipe.steps:
            run.save(state, question)
            report(Progress("train", run.step, recipe.steps, total / recipe.interval))
            total = 0.0
            if time.monotonic() > end:
                return None
    weights = folder / "weights.safetensors"
    save_weights(run.average, weights, question)
    return weights


class Run:
    """All that changes during training: model, average of its weights, optimisers and random choices."""

    def __init__(self, architecture: str, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.model = build_model(architecture)
        initialise(self.model, self.generator)
        with torch.no_grad():
            _, tokens = tokens_forward(self.model, torch.zeros(1, 3, SIZE, SIZE), None)
        self.patch = SIZE // math.isqrt(tokens.shape[1])  # pixels that a token of the last layer stands for
        # The dense reader: which part, which class. It starts at zero and leaves with the training.
        self.reader = nn.Linear(tokens.shape[2], PART_LABELS + CLASS_LABELS)
        nn.init.zeros_(self.reader.weight)
        nn.init.zeros_(self.reader.bias)
        self.optimisers = optimisers(self.model, self.reader, recipe.rate, recipe.weight_decay)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.order = torch.empty(0, dtype=torch.long)
        self.step = 0

    def advance(self, pool: Pool) -> float:
        """Makes one step and returns the loss of the class token."""
        recipe = self.recipe
        rate = recipe.rate * self._schedule()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        images, owners, targets, creatures = self._batch(pool)
        images, owners = augmented(images, owners, self.generator)
        parts, classes = patch_labels(owners, creatures, self.patch)
        kept = None
        if isinstance(self.model, VisionTransformer) and self.step < recipe.steps * (1 - recipe.whole):
            kept = kept_tokens(parts[..., 0], recipe.keep, self.generator)
            parts, classes = (x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])) for x in (parts, classes))
        logits, tokens = tokens_forward(self.model, images, kept)
        part_logits, class_logits = self.reader(tokens).split([PART_LABELS, CLASS_LABELS], dim=2)
        loss = functional.cross_entropy(logits, targets)
        dense = functional.cross_entropy(part_logits.flatten(0, 1), parts.flatten(0, 1))
        dense = dense + functional.cross_entropy(class_logits.flatten(0, 1), classes.flatten(0, 1))
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        (loss + recipe.dense * dense).backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.reader.parameters()], 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self._average()
        return float(loss.detach())

    def save(self, path: Path, question: dict[str, Any]) -> None:
        """Writes a checkpoint at once."""
        content = {
            "step": self.step,
            "order": self.order,
            "generator": self.generator.get_state(),
            "model": self.model.state_dict(),
            "reader": self.reader.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        write_state(path, question, content)

    def load(self, path: Path, question: dict[str, Any]) -> None:
        """Resumes from a checkpoint; raises `CheckpointError` when it is damaged or of another run."""
        content = read_state(path, question)
        self.step, self.order = content["step"], content["order"]
        self.generator.set_state(content["generator"])
        self.model.load_state_dict(content["model"])
        self.reader.load_state_dict(content["reader"])
        self.average = content["average"]
        for optimiser, state in zip(self.optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(state)

    def _batch(self, pool: Pool) -> list[Tensor]:
        if len(self.order) < self.recipe.batch:
            self.order = torch.cat([self.order, torch.randperm(len(pool), generator=self.generator)])
        chosen, self.order = self.order[: self.recipe.batch].numpy(), self.order[self.recipe.batch :]
        return [torch.from_numpy(field[chosen]) for field in (pool.images, pool.owners, pool.targets, pool.creatures)]

    def _schedule(self) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.steps)))

    @torch.no_grad()
    def _average(self) -> None:
        # A shorter memory at the start, so that the first random weights are soon forgotten.
        decay = min(self.recipe.average, (self.step + 1) / (self.step + 20))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)


def write_state(path: Path, question: dict[str, Any], content: dict[str, Any]) -> None:
    """Writes a checkpoint at once, with the `question` that its run answers."""
    buffer = io.BytesIO()
    torch.save({"question": question, **content}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def read_state(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a checkpoint; raises `CheckpointError` when it is damaged or of another run."""
    try:
        content = torch.load(path, weights_only=True)
        found = content["question"]
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({type(error).__name__}); delete it or pass resume=False"
        ) from error
    if found != question:
        odd = [name for name in question if found.get(name) != question[name]]
        raise CheckpointError(
            f"the checkpoint {path} is of a run with another {' and '.join(odd)}; "
            "choose another folder or pass resume=False"
        )
    return content


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


@app.command(cls=spelled(python={"resume": "--restart"}))
def command(
    output: Annotated[Path, typer.Argument(help="Folder for the drawn scenes, the checkpoints and the weights.")],
    architecture: Annotated[
        str, typer.Option("--architecture", help="Name in vitrail.bestiary.model.ARCHITECTURES.")
    ] = "vit",
    label_errors: Annotated[
        bool, typer.Option("--label-errors", help="Plant label errors, as in bestiary/label-errors.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of training.")] = Recipe.steps,
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="Number of training scenes.")] = Recipe.scenes,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of scenes and training.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor cores to use.")] = 2,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of resuming from the last checkpoint.")
    ] = False,
) -> None:
    """Train a model of the bestiary from scratch; the same command resumes an interrupted training."""
    try:
        with thread_count(threads), stages() as report:

            def progress(now: Progress) -> None:
                loss = "" if now.stage == "draw" else f", loss {now.loss:.3f}"
                report({"draw": "drawing scenes", "train": "training"}[now.stage] + loss, now.done, now.total)

            weights = train(
                output,
                architecture=architecture,
                recipe=Recipe(steps=steps, scenes=scenes),
                resume=not restart,
                progress=progress,
                label_errors=LabelErrors() if label_errors else None,
                seed=seed,
                workers=threads,
            )
    except VitrailError as error:
        stop(error)
    except KeyboardInterrupt:
        show(f"stopped; the same command resumes from the last checkpoint in {output}", err=True)
        raise typer.Exit(130) from None
    show(weights)


if __name__ == "__main__":
    app()
