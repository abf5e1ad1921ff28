"""Peak memory of one pass, in a process of its own: what one pass leaves behind shall not hide the next one's peak.

The peak is that of resident memory, or of CUDA's allocator, less what was held before the first pass. For Vitrail this
includes the one look at the model by which it works out the tokens' layout. The same work is first done on a ViT of a
hundred narrow tokens, so that the code that is loaded on the way does not count.
"""

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..errors import VitrailError
from .machine import peak_memory, reset_peak_memory
from .rows import row_named
from .subject import Case, Subject
from .timing import out_of_memory

__all__ = ["peak_here", "peak_of"]

SMALL = Case("test_vit", 160, 1)


def peak_of(
    case: Case, row: str, *, device: str = "cpu", dtype: str = "float32", weights: Mapping[str, Any] | None = None
) -> tuple[int | None, str]:
    """Bytes at the peak of one pass of that row beyond weights and images; or None, and why.

    The process is forked from one that has imported everything and computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = context.Process(target=_tell, args=(theirs, threads, case, row, device, dtype, weights), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        return None, "out of memory" if killed else f"its process ended with exit code {process.exitcode}"
    finally:
        process.join()
        ours.close()


def peak_here(
    case: Case, row: str, *, device: str = "cpu", dtype: str = "float32", weights: Mapping[str, Any] | None = None
) -> tuple[int | None, str]:
    """The same in this process, which should have done nothing else."""
    kind = getattr(torch, dtype)
    warm = row_named(Subject.make(SMALL, device=device, dtype=kind), row)
    if warm.work is not None:
        warm.work()
    found = row_named(Subject.make(case, device=device, dtype=kind, weights=weights), row)
    if found.work is None:
        return None, found.why_not
    del warm
    gc.collect()
    with suppress(OSError, AttributeError):  # elsewhere than on Linux's usual C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = reset_peak_memory(device)
    found.work()
    return peak_memory(device) - before, ""


def _tell(
    answer: Connection, threads: int, case: Case, row: str, device: str, dtype: str, weights: Mapping[str, Any] | None
) -> None:
    torch.set_num_threads(threads)
    try:
        answer.send(peak_here(case, row, device=device, dtype=dtype, weights=weights))
    except VitrailError as error:
        answer.send((None, f"{error}"))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        answer.send((None, "out of memory"))
    finally:
        answer.close()
