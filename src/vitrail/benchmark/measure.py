"""Times that can be compared, peaks of memory, and the machine and the versions that they were measured with.

Every round runs each piece of work once, in turn, so what slows one slows all.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UnsupportedOperationError

__all__ = [
    "Ratio",
    "Times",
    "available_memory",
    "describe_machine",
    "describe_versions",
    "interleave",
    "out_of_memory",
    "peak_memory",
    "ratio",
    "reset_peak_memory",
    "synchroniser",
]


def describe_machine(device: str = "cpu") -> str:
    """Returns one line: processor, cores, threads, memory, versions; on CUDA the accelerator first.

    Example:
        >>> "threads" in describe_machine()
        True
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f"{torch.cuda.get_device_name(device)}; " if torch.device(device).type == "cuda" else ""
    return (
        f"{gpu}{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {describe_versions()}"
    )


def describe_versions(names: tuple[str, ...] = ("vitrail", "torch", "timm", "numpy")) -> str:
    """Returns the packages and their versions, those left out that are not installed.

    Example:
        >>> describe_versions(("no-such-package",))
        ''
    """
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def synchroniser(device: str) -> Callable[[], object]:
    """Returns the function to call before reading the clock: it waits for a GPU, and does nothing on a CPU."""
    if torch.device(device).type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if torch.device(device).type == "mps":
        return torch.mps.synchronize
    return lambda: None


def reset_peak_memory(device: str = "cpu") -> int:
    """Forgets the peak: of resident memory of this process (Linux), or of CUDA's allocator. Returns bytes in use now.

    Raises:
        UnsupportedOperationError: for the memory of another system, or another kind of accelerator.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux"):
        raise UnsupportedOperationError(
            f"the peak of memory is known on Linux and on CUDA, not for {device} on {sys.platform}: leave memory out"
        )
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device: str = "cpu") -> int:
    """Returns the peak since `reset_peak_memory`, in bytes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that can still be had on the device; None where that is not known."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if torch.device(device).type != "cpu" or not info.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if "MemAvailable" in line)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


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
    """Times each piece of work in each round; the first `warmup` rounds are not counted.

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
    """Returns each round's time divided by the base's in the same round.

    Example:
        >>> print(ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]))
        2.00 (2.00–2.50)
    """
    low, median, high = np.quantile(np.divide(times, base), (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, low, high)


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
