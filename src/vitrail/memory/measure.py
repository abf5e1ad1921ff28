"""The memory that this process may still take, what a pass takes: bytes alive at once, and kept for its backward."""

import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Allocations", "free_memory", "saved_bytes"]

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
    """Returns Linux's MemAvailable: free pages, and those of the file cache that can be reclaimed."""
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
    """Returns what each control group of this process, and each above it, still allows."""
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


class Allocations(TorchDispatchMode):
    """Within the block, counts the storages that are born on a device: how much of them lives, and the most that did.

    It stands below autograd, so it sees the backward pass as well, and what autograd keeps for it. What was there
    before (weights, images) is not counted, nor is what a kernel takes and gives back within one operation.

    Example:
        >>> x = torch.ones(1000)
        >>> with Allocations("cpu") as allocations:
        ...     y = (x + 1).mul_(2).view(10, 100)
        >>> allocations.live, allocations.peak
        (4000, 4000)
    """

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self.device = torch.device(device).type
        self.live = 0
        self.peak = 0
        self._born: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        new = {key: storage for key, storage in self._storages((result,)) if key not in self._born}
        if new:
            for key, _ in self._storages((*args, *(kwargs or {}).values())):
                new.pop(key, None)  # a view of what was given, or written in place
        for key, storage in new.items():
            self._count(key, storage)
        return result

    def _storages(self, values: Iterable[Any]) -> Iterator[tuple[int, torch.UntypedStorage]]:
        """Returns the storages on the device, of tensors and of lists of tensors, which is all that an
        operation takes.
        """
        for value in values:
            if isinstance(value, Tensor):
                if value.device.type == self.device and value.layout == torch.strided:
                    storage = value.untyped_storage()
                    yield storage._cdata, storage
            elif isinstance(value, list | tuple):
                yield from self._storages(value)

    def _count(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)

        def died(_: weakref.ref) -> None:
            self.live -= size
            self._born.pop(key, None)

        self._born[key] = weakref.ref(storage, died)


def saved_bytes(forward: Callable[[], Any], constant: Iterable[Tensor]) -> int:
    """Bytes that autograd would keep from a forward pass for its backward, each storage once, `constant` ones not.

    What it hands over to be kept is thrown away at once, so the pass takes no more memory than without gradients, and
    its result cannot be differentiated.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> saved_bytes(lambda: (x * 2).exp().sin(), [])  # exp keeps its result, and sin the same as its input
        4000
    """
    held = {tensor.untyped_storage()._cdata for tensor in constant}
    seen: dict[int, weakref.ref] = {}
    total = 0

    def pack(tensor: Tensor) -> None:
        nonlocal total
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in held and key not in seen:
            total += storage.nbytes()
            # Forgotten when it dies: another storage may then have its address.
            seen[key] = weakref.ref(storage, lambda _: seen.pop(key, None))

    def unpack(_: None) -> Tensor:
        raise RuntimeError("this pass was made to be counted, not to be differentiated")

    with torch.enable_grad(), saved_tensors_hooks(pack, unpack):
        forward()
    return total
