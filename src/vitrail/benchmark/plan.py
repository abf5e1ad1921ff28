"""What is to be measured: presets, and what options change of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .subject import Case

__all__ = ["CLOCKS", "PRESETS", "Plan"]

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Plan:
    """Which models, sizes of image, batches and numbers of targets; how many rounds.

    All rows are timed for every model at every batch, at the first size; with `cross` at every size. `tokens` names the
    model that is measured against tokens, at `along` sizes with one image: the time of the methods in `few`, the peak
    of memory of those in `remembered`. At `longest`, where one pass takes minutes, only the peaks of `few` are taken.
    `clock` is "wall", or "processor" for the time that the process was given.
    """

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    targets: tuple[int, ...]
    rounds: int
    warmup: int = 1
    cross: bool = False
    methods: tuple[str, ...] | None = None
    tokens: str = "vit_small_patch16_224"
    along: tuple[int, ...] = ()
    longest: int | None = None
    few: tuple[str, ...] = ("complete", "gae")
    memory: bool = True
    remembered: tuple[str, ...] = ("complete", "gae", "absolute", "gmar_l2")
    clock: str = "wall"
    device: str = "cpu"
    dtype: str = "float32"
    checkpoint: Path | None = None
    num_classes: int | None = None
    class_names: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("models", "sizes", "batches"):
            if not getattr(self, name):
                raise OptionError(f"{name} is empty: there is nothing to measure")
        if self.clock not in CLOCKS:
            raise OptionError(f"clock={self.clock!r} is none of {', '.join(CLOCKS)}")
        if self.clock == "processor" and self.device != "cpu":
            raise OptionError(f"clock='processor' tells nothing of work on {self.device}: use 'wall'")
        numbers = {"sizes": self.sizes, "batches": self.batches, "targets": self.targets, "rounds": (self.rounds,)}
        for name, some in numbers.items():
            wrong = [number for number in some if number < 1]
            if wrong:
                raise OptionError(f"{name}: {wrong[0]} must be 1 or more")
        if self.checkpoint is not None and len(set(self.models)) > 1:
            raise OptionError(f"one checkpoint fits one model, and {len(self.models)} are named")
        if self.longest is not None and self.longest <= max(self.along, default=0):
            raise OptionError(f"longest={self.longest} is not above the sizes along which time is taken, {self.along}")

    def weights(self, model: str) -> dict[str, Any]:
        """How that model is loaded; the weights that were given belong to the models that were named alone."""
        given = {name: getattr(self, name) for name in ("checkpoint", "num_classes", "class_names")}
        return {name: value for name, value in given.items() if value is not None} if model in self.models else {}

    @property
    def cases(self) -> list[Case]:
        """The cases whose rows are all timed."""
        sizes = self.sizes if self.cross else self.sizes[:1]
        return [Case(model, size, batch) for model in self.models for size in sizes for batch in self.batches]


PRESETS: Mapping[str, Plan] = {
    "quick": Plan(
        models=("vit_tiny_patch16_224",),
        sizes=(64,),
        batches=(2,),
        targets=(1, 2),
        rounds=1,
        tokens="vit_tiny_patch16_224",
        along=(64,),
        remembered=("complete",),
    ),
    "default": Plan(
        models=("vit_base_patch16_224",),
        sizes=(224,),
        batches=(8,),
        targets=(1, 5, 20),
        rounds=5,
        along=(224, 384, 518, 1024),
        longest=2048,
    ),
    "full": Plan(
        models=tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        sizes=(224, 384, 518, 1024),
        batches=(1, 8, 32),
        targets=(1, 5, 20),
        rounds=7,
        cross=True,
        tokens="vit_base_patch16_224",
        along=(224, 384, 518, 1024, 2048),
    ),
}
