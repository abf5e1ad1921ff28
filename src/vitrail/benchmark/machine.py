"""What a figure was measured with: the machine, the versions, and the clock and memory of the device."""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..errors import UnsupportedOperationError

__all__ = [
    "available_memory",
    "describe_machine",
    "describe_versions",
    "peak_memory",
    "reset_peak_memory",
    "synchroniser",
]


def describe_machine(device: str = "cpu") -> str:
    """One line: processor, cores, threads, memory, versions; on CUDA the accelerator first.

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
    """The packages and their versions, those left out that are not installed.

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
    """What to call before the clock is read: waits until a GPU has done what it was given, nothing on a CPU."""
    if torch.device(device).type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if torch.device(device).type == "mps":
        return torch.mps.synchronize
    return lambda: None


def reset_peak_memory(device: str = "cpu") -> int:
    """Forget the peak: of resident memory of this process (Linux), or of CUDA's allocator. Returns bytes in use now.

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
    """The peak since `reset_peak_memory`, in bytes."""
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
