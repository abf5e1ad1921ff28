"""The training recipe: a plain ViT from scratch on two CPU cores in less than 45 minutes.

Scenes are drawn once into a pool and seen many times in other colours and positions. Three things make few images
enough: dense labels for every patch, Muon with a mimetic start, and short token sequences while the landscape is
still ballast.
"""

import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from vitrail.bestiary.augment import augmented
from vitrail.bestiary.dataset import LabelErrors
from vitrail.bestiary.model import CONFIG, build_model, save_weights
from vitrail.bestiary.optimise import Muon
from vitrail.bestiary.pool import Pool, draw_pool, load_pool
from vitrail.bestiary.supervision import CLASS_LABELS, PART_LABELS, kept_tokens, patch_labels, tokens_forward
from vitrail.errors import CheckpointError
from vitrail.files import atomic_write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Every number of the training; the defaults made the weights that are shipped."""

    scenes: int = 12000
    steps: int = 5000
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    keep: int = 64  # tokens of 144 while the landscape is ballast
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
    recipe: Recipe = Recipe(),
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    label_errors: LabelErrors | None = None,
    seed: int = 0,
    workers: int = 2,
    minutes: float = math.inf,
) -> Path | None:
    """Train the bestiary model into the folder `output` and return the path of its weights (safetensors, fp16).

    The pool of scenes (`pool/`) and a checkpoint (`state.pt`, every `recipe.interval` steps) are kept there, so that
    a run that was interrupted goes on where it was; with `resume=False` the checkpoint is ignored. After `minutes`
    the run stops at a checkpoint and returns None. `workers` processes draw the pool; PyTorch's own number of threads
    is used for the rest. Raises `CheckpointError` for a checkpoint that is damaged or of another recipe.

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
    question = {"recipe": asdict(recipe), "seed": seed, "label_errors": asdict(label_errors) if label_errors else None}
    run = Run(recipe, seed)
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

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)
        self.model = build_model(self.generator)
        # The dense reader: which part, which class. It starts at zero and leaves with the training.
        self.reader = nn.Linear(int(CONFIG["embed_dim"]), PART_LABELS + CLASS_LABELS)
        nn.init.zeros_(self.reader.weight)
        nn.init.zeros_(self.reader.bias)
        self.optimisers = _optimisers(self.model, self.reader, recipe)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.order = torch.empty(0, dtype=torch.long)
        self.step = 0

    def advance(self, pool: Pool) -> float:
        """Make one step and return the loss of the class token."""
        recipe = self.recipe
        rate = recipe.rate * self._schedule()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        images, owners, targets, creatures = self._batch(pool)
        images, owners = augmented(images, owners, self.generator)
        parts, classes = patch_labels(owners, creatures, int(CONFIG["patch_size"]))
        kept = None
        if self.step < recipe.steps * (1 - recipe.whole):
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
        """Write a checkpoint at once."""
        buffer = io.BytesIO()
        content = {
            "question": question,
            "step": self.step,
            "order": self.order,
            "generator": self.generator.get_state(),
            "model": self.model.state_dict(),
            "reader": self.reader.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(content, buffer)
        with atomic_write(path) as file:
            file.write(buffer.getvalue())

    def load(self, path: Path, question: dict[str, Any]) -> None:
        """Go on from a checkpoint; `CheckpointError` when it is damaged or answers another question."""
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


def _optimisers(model: VisionTransformer, reader: nn.Linear, recipe: Recipe) -> list[torch.optim.Optimizer]:
    blocks = {
        name: parameter for name, parameter in model.named_parameters() if "blocks" in name and parameter.ndim == 2
    }
    stacked = [(parameter, 3 if name.endswith("qkv.weight") else 1) for name, parameter in blocks.items()]
    others = [
        *((name, parameter) for name, parameter in model.named_parameters() if name not in blocks),
        *reader.named_parameters(),
    ]
    decayed = [parameter for name, parameter in others if name.endswith("weight") and parameter.ndim > 1]
    free = [parameter for name, parameter in others if not (name.endswith("weight") and parameter.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [
        Muon(stacked, recipe.rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(groups, recipe.rate, betas=(0.9, 0.98)),
    ]
