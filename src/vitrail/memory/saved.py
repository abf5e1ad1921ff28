"""What a backward pass will need, counted without keeping it."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["saved_bytes"]


def saved_bytes(forward: Callable[[], Any], constant: Iterable[Tensor]) -> int:
    """Bytes that autograd would keep from a forward pass for its backward, each storage once, `constant` ones not.

    What it hands over to be kept is thrown away at once, so the pass takes no more memory than without gradients, and
    its result cannot be differentiated.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> saved_bytes(lambda: (x * 2).exp().sin(), [])  # exp keeps its result, which is what sin keeps of its input
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
