"""What an engine does with one block of images: it reads them, measures them together, and hands the bytes back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from ..datasets import Dataset
from ..datasets.base import Sample
from ..datasets.geometry import ModelView, seen
from ..errors import ImageError, ModelError
from ..models.preprocess import Preprocess
from ..models.vision_model import VisionModel
from .batched_queries import QueryBatcher
from .parquet_rows import Done

__all__ = ["READERS", "BlockPlan", "BlockWorker", "Read", "fitted"]

READERS = 4  # threads that decode images, ahead of the model


@runtime_checkable
class BlockPlan(Protocol):
    """What every plan says: how pictures come to the model's size, and how many images and rows go together."""

    @property
    def fit(self) -> str: ...

    @property
    def interpolation(self) -> str | None: ...

    @property
    def block(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def seed(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain JSON values."""
        ...


@dataclass(frozen=True, eq=False)
class Read:
    """An image of a block as it was read, or why it could not be."""

    index: int
    source: str
    label: int | None
    found: ModelView | ImageError
    sample: Sample | None = None


@dataclass(eq=False)
class BlockWorker(ABC):
    """Measures blocks of images with one model; engines make another one like it from the same three things.

    `smaller` is told when memory runs out and fewer rows go together.
    """

    model: VisionModel
    data: Dataset
    plan: Any  # a BlockPlan, with what else the worker needs
    smaller: Any = None
    _batcher: QueryBatcher = field(init=False)

    def __post_init__(self) -> None:
        self.preprocess = fitted(self.model, self.plan)
        self._batcher = QueryBatcher(self.model, self.plan.batch, self.smaller or (lambda _: None))

    @abstractmethod
    def measure(self, block: int, images: Sequence[Read]) -> Done:
        """Returns what is to be written of a block."""

    def blocks(self) -> int:
        """Returns the number of blocks of the data."""
        return -(-len(self.data) // self.plan.block)

    def images(self, blocks: Sequence[int] | set[int]) -> int:
        """Returns the number of images in these blocks."""
        return sum(min(self.plan.block, len(self.data) - block * self.plan.block) for block in blocks)

    def read(self, block: int, pool: Executor) -> list[Read]:
        """Returns the images of a block, read side by side; none of them is fatal."""
        start = block * self.plan.block
        return self.read_some(range(start, min(len(self.data), start + self.plan.block)), pool)

    def read_some(self, places: Sequence[int], pool: Executor) -> list[Read]:
        """Returns the images at these places of the data."""
        return list(pool.map(self._read, places))

    def _read(self, index: int) -> Read:
        source = self.data.source(index)
        try:
            sample = self.data.sample(index)
            return Read(index, source, sample.label, seen(sample, self.preprocess), self._kept(sample))
        except ImageError as error:
            return Read(index, source, None, error)

    def _kept(self, sample: Sample) -> Sample | None:
        """Returns what is still needed of a sample once the model's view of it is made: as a rule nothing."""
        del sample
        return None


def fitted(model: VisionModel, plan: BlockPlan) -> Preprocess:
    """Returns the model's preprocessing as the plan wants it.

    Raises:
        ModelError: for a model that comes without any.
    """
    preprocess = model.preprocess
    if preprocess is None:
        raise ModelError(
            f"{model.name} comes without preprocessing, so no pictures can be read for it: give "
            "wrap(…, preprocess=Preprocess(…))"
        )
    if plan.fit == "squash":
        return preprocess.squashed(plan.interpolation)
    return preprocess if plan.interpolation is None else replace(preprocess, interpolation=plan.interpolation)
