"""Peak memory of one pass, in a process of its own: what one pass leaves behind shall not hide the next one's peak.

The peak is that of resident memory, or of CUDA's allocator, less what was held before the first pass. For Vitrail this
includes the one look at the model by which it works out the tokens' layout. The same work is first done on a ViT of a
hundred narrow tokens, so that the code that is loaded on the way does not count.

A fit of the peaks says whether memory grows with the tokens or with their square.
"""

import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from ..errors import VitrailError
from .measure import out_of_memory, peak_memory, reset_peak_memory
from .results import TokenFit
from .rows import Row, row_named
from .subject import Case, Subject

__all__ = ["fit_peaks", "peak_here", "peak_of"]

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
    case: Case,
    row: str | Callable[[Subject], Row],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    weights: Mapping[str, Any] | None = None,
) -> tuple[int | None, str]:
    """Returns the same in this process, which should have done nothing else; `row` may also make a row of its own."""
    kind = getattr(torch, dtype)
    make = partial(row_named, name=row) if isinstance(row, str) else row
    warm = make(Subject.make(SMALL, device=device, dtype=kind))
    if warm.work is not None:
        warm.work()
    found = make(Subject.make(case, device=device, dtype=kind, weights=weights))
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


def fit_peaks(peaks: Mapping[int, int | None]) -> TokenFit | None:
    """Fits constant + linear · N + quadratic · N² to the peaks by least relative errors, no part below zero.

    None for fewer than three peaks, where three parts fit anything.

    Example:
        >>> found = fit_peaks({n: 1000 * n for n in (200, 600, 1000, 4000)})
        >>> round(found.linear), found.dominant, f"{found.linear_share:.3f}"
        (1000, 'linear', '1.000')
        >>> fit_peaks({n: 500 * n + 5 * n**2 for n in (200, 600, 1000, 4000)}).dominant
        'quadratic'
    """
    from scipy.optimize import nnls

    known = {tokens: peak for tokens, peak in peaks.items() if peak is not None and peak > 0}
    if len(known) < 3:
        return None
    tokens = np.array(sorted(known), dtype=float)
    peak = np.array([known[int(number)] for number in tokens], dtype=float)
    most = tokens[-1]
    parts = np.stack([np.ones_like(tokens), tokens / most, (tokens / most) ** 2], axis=1)
    # Divided by the peak, so that the smallest counts as much as the largest; by the most tokens, so that the parts
    # are of one size.
    constant, linear, quadratic = nnls(parts / peak[:, None], np.ones_like(peak))[0].tolist()
    whole = constant + linear + quadratic
    return TokenFit(constant, linear / most, quadratic / most**2, linear / whole, quadratic / whole)
