"""Bytes of tensors that are alive at once, counted one PyTorch operation after the other, on any device."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Allocations"]


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
        """The storages on the device, of tensors and of lists of tensors, which is all that an operation takes."""
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
