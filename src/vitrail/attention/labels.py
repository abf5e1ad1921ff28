"""Labels of tensors: one for each element, in whatever view, stored once where they do not change."""

from dataclasses import dataclass
from operator import mul

import torch
from jaxtyping import Float
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Labels", "once", "varying"]


@dataclass
class _Marked:
    """The labels of a storage's elements, in their order, in any number of dimensions."""

    storage: StorageWeakRef
    labels: list[Tensor]

    def view(self, tensor: Tensor) -> list[Tensor]:
        """Returns the labels of a tensor that lies in the storage."""
        return [_labels_of(one, tensor) for one in self.labels]


class Labels:
    """The labels beside every storage that has some, in float64; they go when it goes.

    Example:
        >>> labels, tensor = Labels(), torch.zeros(2, 3)
        >>> labels.mark(tensor, torch.tensor([[1.0], [2.0]]))
        >>> labels.of(tensor.T[1:])
        [tensor([[1., 2.],
                [1., 2.]], dtype=torch.float64)]
    """

    def __init__(self) -> None:
        self._marked: dict[int, _Marked] = {}
        self._room = 64

    def has(self, tensor: Tensor) -> bool:
        """Returns whether a tensor has labels."""
        return self._find(tensor) is not None

    def of(self, tensor: Tensor) -> list[Tensor] | None:
        """Returns the labels of a tensor in its shape, of each kind that it has; None where it has none."""
        marked = self._find(tensor)
        return None if marked is None else marked.view(tensor)

    def mark(self, tensor: Tensor, *labels: Tensor) -> None:
        """Gives a tensor its labels; what views share its storage have them, too."""
        if not tensor.numel():
            return
        storage = tensor.untyped_storage()
        size, marked = storage.nbytes() // tensor.element_size(), self._find(tensor)
        if marked is None or len(marked.labels) != len(labels):
            nothing = torch.zeros((), dtype=torch.float64, device=tensor.device).expand(size)
            marked = self._marked[storage._cdata] = _Marked(StorageWeakRef(storage), [nothing] * len(labels))
        given = [one.double().expand(tensor.shape) for one in labels]
        order = sorted((at for at, one in enumerate(tensor.shape) if one > 1), key=lambda at: -tensor.stride(at))
        order += [at for at, one in enumerate(tensor.shape) if one <= 1]
        ordered = tensor.permute(order)
        if tensor.numel() == size and ordered.is_contiguous():
            marked.labels = [varying(one.permute(order)) for one in given]
        else:
            for part, one in zip(self.written_out(tensor), given, strict=True):
                part.copy_(one)
        if len(self._marked) > self._room:
            self._marked = {key: one for key, one in self._marked.items() if not one.storage.expired()}
            self._room = 2 * len(self._marked) + 64

    def _find(self, tensor: Tensor) -> _Marked | None:
        marked = self._marked.get(tensor.untyped_storage()._cdata)
        return None if marked is None or marked.storage.expired() else marked

    def written_out(self, tensor: Tensor) -> list[Tensor]:
        """Returns the labels of a tensor that has some, one for each element, to be changed in place."""
        marked = self._marked[tensor.untyped_storage()._cdata]
        marked.labels = [one.clone(memory_format=torch.contiguous_format).view(-1) for one in marked.labels]
        return marked.view(tensor)


def _labels_of(stored: Tensor, tensor: Tensor) -> Tensor:
    """The labels of a tensor, given those of its storage; no more of them are written out than its shape asks for."""
    while True:
        sizes, strides = stored.shape, [stored.shape[at + 1 :].numel() for at in range(stored.dim())]
        ends = [tensor.storage_offset() // step % size for step, size in zip(strides, sizes, strict=True)]
        start = stored.storage_offset() + sum(map(mul, ends, stored.stride()))
        steps = []
        for size, step in zip(tensor.shape, tensor.stride(), strict=True):
            if size <= 1 or step == 0:
                steps.append(0)
                continue
            at = next(at for at, one in enumerate(strides) if one <= step and step % one == 0)
            steps.append(stored.stride(at) * (step // strides[at]))
            ends[at] += (size - 1) * (step // strides[at])
        # A step along one dimension must not lead on into the one before it; then the two have to be one.
        over = next((at for at in reversed(range(len(sizes))) if ends[at] >= sizes[at]), None)
        if over is None:
            return stored.as_strided(tensor.shape, steps, start)
        kept = (step or at in (over - 1, over) for at, step in enumerate(stored.stride()))
        flat = stored[tuple(slice(None if one else 1) for one in kept)].flatten(over - 1, over)
        stored = flat.expand(*sizes[: over - 1], -1, *sizes[over + 1 :])


def once(labels: Float[Tensor, "*shape"]) -> Float[Tensor, "*cut"]:
    """Returns labels that are repeated along a dimension, as `varying` leaves them, but once each."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varying(labels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns the same labels, stored once along the dimensions that they do not change along.

    Example:
        >>> varying(torch.tensor([[1.0, 1.0], [2.0, 2.0]])).stride()
        (1, 0)
    """
    few = once(labels)
    for dim in range(few.dim()):
        line = few[tuple(slice(None) if at == dim else slice(0, 1) for at in range(few.dim()))]
        first = few.narrow(dim, 0, 1) if few.shape[dim] > 1 else few
        if few.shape[dim] > 1 and bool((line == line.narrow(dim, 0, 1)).all()) and bool((few == first).all()):
            few = first
    fits = few.is_contiguous() and few.untyped_storage().nbytes() == few.nbytes
    return (few if fits else few.clone(memory_format=torch.contiguous_format)).expand(labels.shape)
