"""The memory that this process may still take, on a GPU or on the machine, under the limits of a container."""

import os
import re
from pathlib import Path

import torch

__all__ = ["free_memory"]

ROOT = Path("/")


def free_memory(device: torch.device | str, root: Path = ROOT) -> int:
    """Bytes that tensors on this device may still take.

    On CUDA what the driver has free and what PyTorch's allocator holds unused. On the CPU what the kernel calls
    available, less where a control group (a container, a batch job) allows less. `root` is where /proc and /sys lie.
    Where a system says nothing of itself, half of its memory.

    Example:
        >>> free_memory("cpu") > 2**20
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min([_available(root), *_left_in_groups(root)])


def _available(root: Path) -> int:
    """MemAvailable of Linux: free pages, and those of the file cache that can be had back."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 2**31


def _left_in_groups(root: Path) -> list[int]:
    """What each control group that this process is in, and each above it, still allows."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, limit, usage, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            limit, usage, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = mount / path.lstrip("/")
        # A container often sees its own group as the root of the tree, whatever its path outside.
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(mount):
                break
            try:
                allowed = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
            except (OSError, ValueError):
                continue
            if allowed.isdecimal():
                left.append(max(0, int(allowed) - used + _reclaimable(folder / "memory.stat", cache)))
    return left


def _reclaimable(stat: Path, field: str) -> int:
    """Bytes of the file cache that count as used but are given back when they are wanted."""
    try:
        found = re.search(rf"^{field} (\d+)$", stat.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
