"""Times that can be compared: every round runs each piece of work once, in turn, so what slows one slows all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["Ratio", "Times", "interleave", "out_of_memory", "ratio"]


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds, and its quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Times:
    """Seconds of every piece of work, a value a round; why a piece of work that failed did so."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def interleave(
    work: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> Times:
    """Time each piece of work in each round; the first `warmup` rounds are not counted.

    What runs out of memory is left out of the rounds that follow, and noted. The order is turned round every other
    round, so that no piece of work always follows the same one.

    Example:
        >>> times = interleave({"nothing": lambda: None, "a sum": lambda: sum(range(10_000))}, rounds=3)
        >>> len(times.seconds["nothing"]), ratio(times.seconds["a sum"], times.seconds["nothing"]).median > 1
        (3, True)
    """
    times = Times({name: [] for name in work})
    total = (warmup + rounds) * len(work)
    for number in range(warmup + rounds):
        names = list(work)[:: -1 if number % 2 else 1]
        for place, name in enumerate(names):
            if name not in times.failed:
                synchronise()
                start = clock()
                try:
                    work[name]()
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    times.failed[name] = "out of memory"
                    del times.seconds[name]
                else:
                    synchronise()
                    if number >= warmup:
                        times.seconds[name].append(clock() - start)
            progress(number * len(work) + place + 1, total)
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> Ratio:
    """Each round's time divided by the base's in the same round.

    Example:
        >>> print(ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]))
        2.00 (2.00–2.50)
    """
    low, median, high = np.quantile(np.divide(times, base), (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, low, high)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
