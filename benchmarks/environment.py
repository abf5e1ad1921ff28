"""What machine and which versions a figure was measured with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["describe_machine", "peak_memory", "reset_peak_memory"]


def describe_machine() -> str:
    """One line: processor, cores, threads, memory, versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("vitrail", "torch", "timm", "numpy"))
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
    )


def reset_peak_memory() -> int:
    """Forget the process's peak of resident memory; returns the memory in use now, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The peak of resident memory since `reset_peak_memory`, in bytes (Linux)."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
