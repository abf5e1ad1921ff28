"""Rows sent through a model in passes; when memory runs out, half as many rows go together, and nothing is lost."""

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ..errors import PackedBatchError

__all__ = ["in_passes", "ran_out"]

Result = TypeVar("Result")

# How PyTorch words it where it has no exception of its own for it: on the CPU, on Apple's GPUs, in cuBLAS.
WORDS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory has run out, on whatever device.

    Example:
        >>> ran_out(torch.OutOfMemoryError()), ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        (True, True)
        >>> ran_out(RuntimeError("shapes disagree"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def in_passes(
    ask: Callable[[slice], Result],
    count: int,
    *,
    size: Callable[[int], int] | None = None,
    halved: Callable[[int], object] | None = None,
) -> Iterator[Result]:
    """`ask(rows)` for slices that cover `count` rows in order; of those left, `size` says how many go together.

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
