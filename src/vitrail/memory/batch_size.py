"""Rows sent through a model in passes of as many as memory holds, found out from what the first passes take.

When memory runs out all the same, half as many rows go together, and nothing is lost.
"""

import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.tap import eager
from ..errors import PackedBatchError
from ..models.readiness import ran_out
from ..models.vision_model import VisionModel
from .measure import Allocations, free_memory, saved_bytes

__all__ = ["Sizing", "fitting", "in_passes", "kept_bytes", "most_images", "usable"]

Result = TypeVar("Result")


def in_passes(
    ask: Callable[[slice], Result],
    count: int,
    *,
    size: Callable[[int], int] | None = None,
    halved: Callable[[int], object] | None = None,
) -> Iterator[Result]:
    """Returns `ask(rows)` for slices that cover `count` rows in order; of those left, `size` says how many go together.

    By default it is all. When memory runs out, `halved` is told how many may go together from then on, and the same
    rows are asked again; what had been answered stays. Rows that the model would join in one sequence go one by one.
    The error of a single row is passed on.

    Example:
        >>> def ask(rows):
        ...     if rows.stop - rows.start > 3:
        ...         raise MemoryError
        ...     return rows.start, rows.stop
        >>> list(in_passes(ask, 8))
        [(0, 2), (2, 4), (4, 6), (6, 8)]
    """
    start, most = 0, count
    while start < count:
        number = max(1, min(size(count - start) if size else count, count - start, most))
        try:
            result = ask(slice(start, start + number))
        except Exception as error:
            packed = isinstance(error, PackedBatchError)
            if number == 1 or not (packed or ran_out(error)):
                raise
            most = 1 if packed else number // 2
        else:
            yield result
            start += number
            continue
        # Outside the handler, where the error no longer holds on to the tensors of the pass that failed.
        if packed:
            continue
        if halved is not None:
            halved(most)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# More images in a pass gain no more speed: a CPU is quickest while a block's activations stay in its cache.
MOST = {"cpu": 32}
MOST_ELSEWHERE = 256

# Of the free memory; the rest is for what kernels take within an operation, and for gaps between tensors. On a CPU
# these are wide: a process was seen to grow by 1.6 to 1.8 times the bytes of its tensors (benchmarks/plan.py).
SHARE = {"cpu": 0.5}
SHARE_ELSEWHERE = 0.8
SURELY = 0.125  # of the free memory: so little by the first estimate that nothing needs to be found out

_log = logging.getLogger("vitrail")


@dataclass
class Known:
    """What passes of one kind were seen to take, in bytes by number of images, and the most that memory allowed."""

    peaks: dict[int, int]
    most: int | None = None

    def peak(self, images: int) -> int:
        """Returns the bytes of that number of images, on the line through the two largest passes that were seen."""
        if images in self.peaks:
            return self.peaks[images]
        *_, (count, peak) = points = sorted(self.peaks.items())
        fewer, low = points[-2] if len(points) > 1 else (0, 0)
        return round(peak + (peak - low) / (count - fewer) * (images - count))


def usable(free: int, device: str) -> int:
    """Returns how many of the `free` bytes on a device of this type tensors may fill.

    Example:
        >>> usable(1000, "cpu"), usable(1000, "cuda")
        (500, 800)
    """
    return int(SHARE.get(device, SHARE_ELSEWHERE) * free)


def fitting(first: int, each: int, room: int) -> int:
    """Returns how many images a pass holds in `room` bytes, where one takes `first` and each more `each`; 1 at least.

    Example:
        >>> fitting(100, 50, 400)
        7
    """
    return max(1, 1 + (room - first) // max(1, each))


def most_images(device: str) -> int:
    """Returns the most images of a pass on a device of this type, however much memory there is."""
    return MOST.get(device, MOST_ELSEWHERE)


_KEPT: WeakKeyDictionary[VisionModel, dict[Hashable, int]] = WeakKeyDictionary()


def kept_bytes(model: VisionModel, image: Float[Tensor, "1 channels height width"]) -> int:
    """Bytes that autograd keeps of the model's pass over one image of this size, looked up after the first time."""
    known = _KEPT.setdefault(model, {})
    size = (*image.shape[1:], image.dtype)
    if size not in known:
        asked = image.detach().clone().requires_grad_()
        with eager():
            weights = (*model.module.parameters(), *model.module.buffers())
            known[size] = saved_bytes(lambda: model.logits(asked), weights)
    return known[size]


_KNOWN: WeakKeyDictionary[VisionModel, dict[Hashable, Known]] = WeakKeyDictionary()


class Sizing:
    """The sizes of the passes of one question: `given` images at most, or as many as the free memory holds.

    `kind` is all that decides what one image takes: method, options, targets, image size. `estimate` says what an
    image is likely to take, in bytes; without it nobody knows. Unless that is next to nothing, a first image goes
    alone, then two together, both watched, and what they took decides; later questions of the same kind know.
    """

    def __init__(
        self, model: VisionModel, kind: Hashable, given: int | None = None, estimate: Callable[[], int] | None = None
    ) -> None:
        self.device = model.device
        self.given, self.estimate = given, estimate
        self.known = _KNOWN.setdefault(model, {}).setdefault(kind, Known({}))
        self._learning = False

    def size(self, left: int) -> int:
        """Returns how many of the remaining images form the next batch."""
        most = most_images(self.device.type) if self.given is None else self.given
        wanted = min(left, most if self.known.most is None else min(most, self.known.most))
        self._learning = False
        if self.given is not None or wanted == 1:
            return wanted
        free = free_memory(self.device)
        self._learning = len(self.known.peaks) < 2
        if self._learning and self.estimate and self.estimate() * wanted < SURELY * free:
            self._learning = False
            return wanted
        if not self.known.peaks:
            return 1
        room = usable(free, self.device.type)
        if len(self.known.peaks) == 1 and self.known.peak(2) < room:
            return 2
        first = self.known.peak(1)
        return min(wanted, fitting(first, self.known.peak(2) - first, room))

    @contextmanager
    def watching(self, images: int) -> Iterator[None]:
        """Notes what a pass of that number of images takes in this block, if it is one to learn from."""
        if not self._learning:
            yield
            return
        with Allocations(self.device) as allocations:
            yield
        self.known.peaks[images] = allocations.peak

    def halved(self, most: int) -> None:
        """Limits batches to `most` images from now on, since memory ran out."""
        self.known.most = most
        _log.warning("memory ran out: %d image%s at a time from here on", most, "s" * (most != 1))
