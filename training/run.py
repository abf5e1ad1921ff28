"""What the recipes share: a training in steps that resumes bit by bit from its checkpoints, and its command."""

import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
import typer
from torch import Tensor, nn

from vitrail.cli.console import show, stages, stop
from vitrail.errors import CheckpointError, VitrailError
from vitrail.files import atomic_write
from vitrail.threads import thread_count

Seed: TypeAlias = Annotated[int, typer.Option("--seed", help="Random seed of scenes and training.")]
Scenes: TypeAlias = Annotated[int, typer.Option("--scenes", min=1, help="Number of training scenes.")]
Threads: TypeAlias = Annotated[int, typer.Option("--threads", min=1, help="Processor cores to use.")]
Restart: TypeAlias = Annotated[
    bool, typer.Option("--restart", help="Begin anew instead of resuming from the last checkpoint.")
]


class Progress(NamedTuple):
    """How far training is: scenes drawn or steps made, of how many, and the mean loss since the last report."""

    stage: Literal["draw", "train"]
    done: int
    total: int
    loss: float = math.nan


class TrainingRun(ABC):
    """All that changes during training: weights, their average, optimisers and the number of the next step."""

    def __init__(self, optimisers: list[torch.optim.Optimizer], decay: float) -> None:
        self.optimisers, self.decay, self.step = optimisers, decay, 0
        self.average = {name: value.clone() for name, value in self.weights().items()}

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Returns the weights that are averaged; writing into these tensors changes the model."""

    def update(self, loss: Tensor, parameters: Iterable[Tensor], rate: float) -> None:
        """Makes one step of all optimisers along the clipped gradient of `loss`."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(parameters), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        # A shorter memory at the start, so that the first random weights are soon forgotten.
        decay = min(self.decay, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for name, value in self.weights().items():
                self.average[name].lerp_(value, 1 - decay)

    def state(self) -> dict[str, Any]:
        """Returns the content of a checkpoint."""
        return {
            "step": self.step,
            "model": self.weights(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up the content of a checkpoint."""
        self.step, self.average = content["step"], content["average"]
        with torch.no_grad():
            for name, value in self.weights().items():
                value.copy_(content["model"][name])
        for optimiser, state in zip(self.optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(state)

    def complete(
        self,
        steps: int,
        advance: Callable[[], float],
        checkpoint: "Checkpoint",
        *,
        interval: int,
        report: Callable[[Progress], None],
        end: float,
    ) -> bool:
        """Makes what is missing of `steps`, each by a call of `advance`, which returns its loss.

        A checkpoint is written every `interval` steps; at the first one after `end` (of `time.monotonic`) it stops.
        Returns whether all steps are made.
        """
        total, before = 0.0, self.step
        while self.step < steps:
            total += advance()
            if self.step % interval == 0 or self.step == steps:
                checkpoint.write(self.state())
                report(Progress("train", self.step, steps, total / (self.step - before)))
                total, before = 0.0, self.step
                if time.monotonic() > end:
                    return False
        return True


class Checkpoint(NamedTuple):
    """The file of a training's state, and the `question` that its run answers: recipe, seed and the like."""

    path: Path
    question: dict[str, Any]

    def write(self, content: dict[str, Any]) -> None:
        """Writes the file at once."""
        buffer = io.BytesIO()
        torch.save({"question": self.question, **content}, buffer)
        with atomic_write(self.path) as file:
            file.write(buffer.getvalue())

    def read(self) -> dict[str, Any]:
        """Returns the content; raises `CheckpointError` when it is damaged or of another run."""
        try:
            content = torch.load(self.path, weights_only=True)
            found = content["question"]
        except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
            raise CheckpointError(
                f"the checkpoint {self.path} is damaged ({type(error).__name__}); delete it or pass resume=False"
            ) from error
        if found != self.question:
            odd = [name for name in self.question if found.get(name) != self.question[name]]
            raise CheckpointError(
                f"the checkpoint {self.path} is of a run with another {' and '.join(odd)}; "
                "choose another folder or pass resume=False"
            )
        return content


@contextmanager
def reporting(output: Path, threads: int) -> Iterator[Callable[[Progress], None]]:
    """Yields what shows the progress of a training on stderr; an error or Ctrl-C in the block ends the command."""
    try:
        with thread_count(threads), stages() as report:

            def progress(now: Progress) -> None:
                loss = "" if now.stage == "draw" else f", loss {now.loss:.3f}"
                report({"draw": "drawing scenes", "train": "training"}[now.stage] + loss, now.done, now.total)

            yield progress
    except VitrailError as error:
        stop(error)
    except KeyboardInterrupt:
        show(f"stopped; the same command resumes from the last checkpoint in {output}", err=True)
        raise typer.Exit(130) from None
